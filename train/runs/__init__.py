"""A training run: settings, plan, folder, checkpoints and records."""
