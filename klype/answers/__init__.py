"""What a model could answer, over any Source: traces, the tree of exact answers, forks, sampling without repetition."""
