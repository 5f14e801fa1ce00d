"""Completions from a policy."""
