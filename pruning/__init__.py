"""Which neurons matter, and what to do about it. Knows models, not requests."""
