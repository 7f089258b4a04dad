"""The inference engine: batches requests of different widths into one step. Knows nothing of HTTP."""
