"""The studio: pages on which one sees how a model answers, on the same guard as the API."""
