"""Training: objectives, optimizer, one loop for all stages, rollouts, the reward model, and the table of stages."""
