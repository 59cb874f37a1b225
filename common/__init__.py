"""The lowest layer: what every package may import. It imports nothing of ours, and no torch until it must."""
