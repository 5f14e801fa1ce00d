"""What lies in a run's folder: stages, artifacts, manifests, and the rows of its files; no tensors, no models."""
