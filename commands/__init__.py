"""The commands below ``saecache cache``, and what all commands share; ``cli.py`` has the others."""
