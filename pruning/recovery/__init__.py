"""Brings pruned variants back by training low-rank matrices on what the dense model says."""
