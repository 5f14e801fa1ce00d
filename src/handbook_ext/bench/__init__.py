"""How fast a training step is, beside TRL's and SELM's."""
