"""Iterative preference optimisation: the nouns that the scripts speak in."""
