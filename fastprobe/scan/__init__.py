"""Linearity scans: plans, passes over tokens, checkpoints, results."""
