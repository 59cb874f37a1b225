"""The loss terms beside the reconstruction error."""
