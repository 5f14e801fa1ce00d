"""Models and tokens: checkpoints, adapters, chat templates, prefix-shared rows and their forward pass."""
