"""The only rooms that know the modules of Hugging Face models."""
