"""Candidates, rankings of them, and how well those who rank agree."""
