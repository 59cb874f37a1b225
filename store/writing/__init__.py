"""A cache comes to be: rows in reading order, the spill, the shuffle, finished shards, the manifest."""
