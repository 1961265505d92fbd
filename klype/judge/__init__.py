"""Judges: whether an answer is right, wrong, or cannot be decided."""
