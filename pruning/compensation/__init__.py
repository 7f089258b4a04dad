"""Corrects one variant without training, by least squares, layer after layer."""
