"""YAML to a run to its graph of stages, every value typed and traced to its line. No torch."""
