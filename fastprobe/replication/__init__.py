"""The analyses of the 2021 paper, run on a model and shown on one page."""
