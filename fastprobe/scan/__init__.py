"""Linearity scans: which sums, the passes over tokens, checkpoints."""
