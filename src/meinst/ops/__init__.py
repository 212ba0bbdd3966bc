"""Pure functions on tensors and arrays, and their compiled kernels."""
