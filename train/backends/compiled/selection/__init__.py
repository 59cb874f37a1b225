"""Exact selection in compiled loops: screened by a cheap product, decided by float32 pre-activations."""
