"""The mathematics: losses, log-probs, the order of training, means and intervals. Pure functions of tensors and arrays."""
