"""Caches from caches: slices, merged caches, other encodings."""
