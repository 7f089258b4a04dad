"""Which neurons go first, and how many are left in each layer: scores, orders, widths."""
