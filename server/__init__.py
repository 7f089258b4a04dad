"""One process that serves one model at several sparsities from one copy of its weights."""

__version__ = "0.1.0"
