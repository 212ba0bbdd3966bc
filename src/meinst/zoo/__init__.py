"""Shipped models with their cards, and recipes."""
