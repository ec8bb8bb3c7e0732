"""Alignment of networks modulo their symmetries: matching, averaging, and repair after averaging."""
