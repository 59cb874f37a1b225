"""The backends compute selections, sparse products and optimizer steps, each for some devices."""
