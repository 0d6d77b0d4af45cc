"""Tools for tests, for benchmarks and for users who add a layout or a kernel."""
