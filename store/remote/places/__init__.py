"""A place in object storage: its URL, its connection, and its requests, all repeated and checked."""
