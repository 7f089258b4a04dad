"""One variant as a checkpoint of its own, for other engines."""
