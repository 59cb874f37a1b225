"""What can be seen of every latent of an SAE."""
