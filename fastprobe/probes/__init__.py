"""Least-squares classifiers on every state."""
