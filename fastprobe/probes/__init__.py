"""Read labels of tokens from every state with least-squares classifiers."""
