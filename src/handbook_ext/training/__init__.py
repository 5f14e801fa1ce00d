"""Fine-tuning, reward models, preference optimisation, and the log-probs that training starts from."""
