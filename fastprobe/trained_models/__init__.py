"""Trained models and tagged text that Python and npm packages carry, as folders that Transformers loads."""
