"""Elements replaced by zeros, means, samples or linear maps."""
