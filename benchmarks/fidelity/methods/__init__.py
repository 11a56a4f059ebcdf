"""The methods of the laboratory: this package's own, its peers, the plain baselines."""
