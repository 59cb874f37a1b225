"""Repositories of the Hugging Face Hub as places of caches and SAEs: ``hf://datasets/ORG/NAME[@REVISION][/path]``.

Objects are read from the Hub's ``resolve`` addresses by the object store library, as those of a bucket are.
Everything else is a few requests to the Hub's HTTP API. A write is a commit; files are committed in batches.
"""
