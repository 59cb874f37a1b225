"""What a variant is made of: rows, gradients, running values, and the base classes of kinds."""
