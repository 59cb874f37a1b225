"""A finished cache is read: shards through memory maps, rows by number, epochs of batches."""
