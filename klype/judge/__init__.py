"""Judges: do two answers mean the same, and is one correct? None if undecided."""
