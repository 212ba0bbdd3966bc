"""Fuzzing: strategies of damaged inputs, and subprocesses that run them."""
