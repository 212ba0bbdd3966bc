"""Reports on data sets."""
