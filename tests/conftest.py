"""What every test process shares: the S3 server, Triton's interpreter for a GPU, no idle waiting."""

import os
from collections.abc import Iterator

import pytest

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported, which other packages do too

# OpenMP's threads spin while they wait for each other. The tensors of tests are tiny, and other processes
# need the cores: half of the processor time of a training test was spent so. Processes inherit this.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported

# Hundreds of tests start Python: none of these processes shall compile the sources that another one compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

from .store.remote.conftest import hub, proxy, s3_server, shared_proxy, team

__all__ = ["hub", "proxy", "s3_server", "shared_proxy", "team"]


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Only a power cut could tell the difference. Tests of crashes start processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _descriptor: None)
        yield
