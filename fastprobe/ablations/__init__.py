"""Replace elements of a model and measure the effect on its output."""
