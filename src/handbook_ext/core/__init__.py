"""What a run's folder is: stages, artifacts, manifests, rows. Nothing of preference learning."""
