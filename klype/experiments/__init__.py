"""Experiments that train and examine, and the article measured on a model."""
