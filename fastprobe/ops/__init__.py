"""The operations: each with its contract, its definition in torch and its other implementations."""
