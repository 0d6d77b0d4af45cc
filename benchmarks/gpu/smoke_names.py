"""Names of the smoke tests, without the libraries that they need."""

NAMES = ("cuda", "exact", "triton", "unit_sum", "score", "add_norm", "bias_gelu", "vocabulary")
