"""Models on data: evaluation, and prediction on files."""
