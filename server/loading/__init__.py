"""A model on its way into memory: which one, where to, in which order of its neurons, how many of them."""
