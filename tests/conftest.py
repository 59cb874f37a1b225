"""What every test process shares: the S3 server, and Triton's interpreter in the place of a GPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which other packages do too

from .store.remote.conftest import hub, proxy, s3_server, shared_proxy, team

__all__ = ["hub", "proxy", "s3_server", "shared_proxy", "team"]
