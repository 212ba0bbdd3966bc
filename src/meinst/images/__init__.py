"""Image files: find and read them, scale their values to 8 bits, note what was done."""
