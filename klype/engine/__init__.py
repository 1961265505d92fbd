"""Generation: sampling, continuous batching over one cache, speculation."""
