"""Figures and reports about mask codecs."""
