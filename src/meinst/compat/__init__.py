"""Foreign files: the published models and the backbones they start from, translated once, strictly.

Nothing below the command line knows that these formats exist.
"""
