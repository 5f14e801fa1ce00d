"""A run to its stages: settings, inputs and commands, once, for make and for the scripts."""
