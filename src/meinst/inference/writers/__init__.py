"""What prediction writes: one module for each output format; ``formats.py`` lists them."""
