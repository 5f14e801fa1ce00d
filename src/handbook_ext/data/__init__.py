"""Rows of the world to offline preference pairs: the schemas of public data sets, and the tiny world."""
