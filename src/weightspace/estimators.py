"""Traces, diagonals, eigenvalues and log-determinants of a matrix that is known by its products alone."""
