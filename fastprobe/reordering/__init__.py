"""Layers run in other orders, and what that does to the output."""
