"""YAML to a run, every value typed and traced to the line that states it. No torch."""
