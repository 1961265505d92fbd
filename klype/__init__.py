"""klype: train a small language model through all its stages, and see, measure and reduce its divergence."""

__version__ = "0.1.0"
