"""Compiled kernels; their sources are in ``native/``."""
