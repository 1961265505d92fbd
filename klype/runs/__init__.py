"""A run: its folder, plan, recipe and the pipeline that makes it."""
