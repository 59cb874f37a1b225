"""The training loop, and what it owns: one SAE in training, its optimizer, its batches."""
