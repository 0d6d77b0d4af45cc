"""Rows of numbers, and builders of tables and figures."""
