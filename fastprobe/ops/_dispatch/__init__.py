"""How an implementation of an operation is chosen."""
