"""Fit, compare and evaluate mask codecs; needs no detector."""
