"""What a model could answer, over any Source: saved traces, the tree of exact answers, forks, decoders."""
