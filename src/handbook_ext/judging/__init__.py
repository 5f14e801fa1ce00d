"""Who says which completion is better: the true reward, reward models, the policy itself."""
