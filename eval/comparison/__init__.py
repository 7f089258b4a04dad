"""Ways of ranking neurons against each other, by how far the pruned models go astray."""
