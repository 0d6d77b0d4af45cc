"""Least squares from moments: sums, solves, scores and error bounds."""
