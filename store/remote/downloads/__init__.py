"""The downloads that are kept on this machine."""
