"""Which preference pairs to train on: pure functions from rows to rows, and the store of log-probs they read."""
