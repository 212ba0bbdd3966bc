"""Write data sets in other layouts; ``convert.py`` is the way in."""
