"""Hugging Face models: their points, and their layers in any order. No other package knows their modules."""
