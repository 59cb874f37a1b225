"""What the commands do, one function each; ``cli.py`` has the table that registers them."""
