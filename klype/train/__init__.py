"""Training: objectives, optimizer, one loop for all stages, rollouts and the reward model."""
