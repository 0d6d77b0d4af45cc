"""Least squares from moments.

In the order of the computation: the sums to keep (moment_plan), the sums (moments, moments_file), the scatter of a
source (spectrum), its Cholesky factor and the ends of its spectrum (lanczos, deflation), its whitened coordinates
(whitening), the fit to a target (least_squares), the fits without each fold (cross_validation), the error of r2
(error_bounds), a second pass over the rows (refinement), the best ridge (ridge) and the columns of a row (scores).
linear_fit does all of it for one stream of rows.
"""
