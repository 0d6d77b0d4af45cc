"""Text, labels and batches: the input of a model."""
