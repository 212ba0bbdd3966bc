"""Images and annotations, and what training makes of them."""
