"""The cache on disk and in object storage; knows nothing of models or SAEs. The format is in ``README.md`` here."""
