"""The greedy oracle, and how well each rule's estimator agrees with it."""
