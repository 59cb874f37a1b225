"""Facts about the machine. None of them is a credential."""
