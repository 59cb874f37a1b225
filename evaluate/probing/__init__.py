"""What latents know about labelled text: k-sparse probing, and absorption of first letters."""
