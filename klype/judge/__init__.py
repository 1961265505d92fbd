"""Judges decide whether two answers mean the same and whether one is correct; None if undecided."""
