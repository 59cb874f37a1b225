"""``python -m saecache`` is the command ``saecache``."""

from .cli import main

main()
