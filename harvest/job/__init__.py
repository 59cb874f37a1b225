"""A harvest at work: where it goes, its phases, the stream of sequences, the writers of rows."""
