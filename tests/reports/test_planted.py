"""Whether the check of the verdicts can fail: differences that are planted by hand, and none."""
