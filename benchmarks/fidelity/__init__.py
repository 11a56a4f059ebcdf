"""The laboratory: every method on one run, from one noise, against the same solver's full run."""
