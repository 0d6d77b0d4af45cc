"""Results as rows, tables and figures."""
