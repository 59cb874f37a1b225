"""The S3 server of the tests: one for each test process, for whatever is shared through a bucket."""

from .store.remote.conftest import proxy, s3_server, shared_proxy, team

__all__ = ["proxy", "s3_server", "shared_proxy", "team"]
