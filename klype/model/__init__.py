"""The language model: configuration, transformer, cache, checkpoint folder, conversion."""
