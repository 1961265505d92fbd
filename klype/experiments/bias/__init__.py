"""The hard-target experiment: how much of a model's divergence comes from training on one right word at a time."""
