"""The analyses of Zhao et al. (2021), run on a model and shown on one HTML page."""
