"""What a trained policy is measured by on held-out prompts."""
