"""Runs and tables to pages and pictures, and the health of an iteration."""
