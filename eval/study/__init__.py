"""The paper's experiment, offline: every strategy at every sparsity, and what the answers amount to."""
