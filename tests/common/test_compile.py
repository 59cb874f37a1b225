"""Compiled loops where nothing can be kept on disk, as in a container that may only be read."""

import subprocess
import sys

import numpy as np

from saecache.store.encoding.checksum import crc32c
from tests.killing import DEADLINE_SECONDS

PROGRAM = """
import tempfile

def denied(**options):
    raise PermissionError(13, "Permission denied")

tempfile.TemporaryFile = denied  # Numba tries every folder so

import numpy as np
from saecache.store.encoding.checksum import crc32c
from saecache.store.encoding.encode import encode_rows
from saecache.train.backends.compiled import backend

print(crc32c(np.arange(100_000).astype(np.uint8)))
"""


def test_without_a_folder_to_write_to() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert int(ended.stdout) == crc32c(np.arange(100_000).astype(np.uint8))
