"""Tools for tests, benchmarks and users who add a layout or a kernel."""
