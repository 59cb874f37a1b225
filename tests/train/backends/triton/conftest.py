"""Triton's kernels run in its interpreter here: they need no GPU."""

import os
from importlib.util import find_spec

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")
collect_ignore_glob: list[str] = []

if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
    pytest.skip("triton cannot be installed on this platform", allow_module_level=True)
