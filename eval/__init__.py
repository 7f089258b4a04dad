"""How good a variant is, and whether we may say so. Knows tasks and answers, not engines."""
