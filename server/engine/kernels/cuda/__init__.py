"""A step on a CUDA device: Triton kernels between the matrix products, and whole steps kept as graphs."""
