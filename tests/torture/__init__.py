"""Runs that are killed at random until they are done, held to the bits of one that was left alone: `make torture`."""
