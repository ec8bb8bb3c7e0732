"""Proven bounds on how far the outputs of two networks are apart, carried through the graph operation by operation."""
