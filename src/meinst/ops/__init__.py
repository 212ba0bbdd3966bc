"""Pure functions on tensors and arrays, and the kernels behind them."""
