"""A local disk that fills up during a pull: a clear error, no cache, and the same pull continues."""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from saecache.store import SaecacheError, inspect_output
from saecache.store.remote.places import file_blocks
from saecache.store.remote.pull import Pull
from saecache.store.remote.push import Push

Contents = Callable[[Path], dict[str, bytes]]
PULL = "import sys; from saecache.cli import main; sys.argv[1:1] = ['cache', 'pull']; main()"


def pull_by_command(url: str, path: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PULL, url, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)


def test_files_that_may_not_grow(team: str, cache_path: Path, tmp_path: Path, contents: Contents) -> None:
    """The limit of the process stands for a quota: writing beyond it fails as on a full disk."""
    Push(cache_path, f"{team}/c").run()
    sizes = sorted(file.stat().st_size for file in cache_path.rglob("*") if file.is_file())
    limit = sizes[len(sizes) // 2] - 1

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = pull_by_command(f"{team}/c", tmp_path / "copy", preexec_fn=limited)
    assert done.returncode == 1
    assert "files may not grow that large here" in done.stderr
    assert "Traceback" not in done.stderr
    assert inspect_output(tmp_path / "copy") != "complete"
    assert not list((tmp_path / "copy").rglob("*.tmp"))
    Pull(f"{team}/c", tmp_path / "copy").run()
    assert contents(tmp_path / "copy") == contents(cache_path)


def test_no_space_left(
    team: str, cache_path: Path, tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC from the system, at the sixth block."""
    Push(cache_path, f"{team}/c").run()
    left, real = 5, file_blocks.write_all

    def write_all(file: BinaryIO, block: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file, block)

    with monkeypatch.context() as full:
        full.setattr(file_blocks, "write_all", write_all)
        with pytest.raises(SaecacheError, match=r"the disk ran full .*run the same command again"):
            Pull(f"{team}/c", tmp_path / "copy").run()
    assert inspect_output(tmp_path / "copy") != "complete"
    assert not list((tmp_path / "copy").rglob("*.tmp"))
    Pull(f"{team}/c", tmp_path / "copy").run()
    assert contents(tmp_path / "copy") == contents(cache_path)
