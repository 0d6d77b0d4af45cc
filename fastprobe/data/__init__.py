"""Text, labels and batches: what goes through a model."""
