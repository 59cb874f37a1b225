"""What a stored row is in bytes, and the compiled loops that make and move it."""
