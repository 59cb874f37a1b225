"""Loss terms beside the reconstruction, each once."""
