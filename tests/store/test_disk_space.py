"""A disk that is too small is reported before the work, with sizes that can be told apart."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from saecache.common.errors import UsageError
from saecache.store import PlannedSize, check_disk_space
from saecache.store.disk_space import check_room


def test_small_sizes_are_shown_in_their_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were "needs 0.0 GiB, 0.0 GiB are free"."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5000))
    with pytest.raises(UsageError, match=r"needs 3 MiB while .* \(2 MiB when .*\), 4.88 KiB are free"):
        check_disk_space(tmp_path, PlannedSize(final_bytes=2 << 20, peak_bytes=3 << 20))
    with pytest.raises(UsageError, match=r"2 MiB are to come, 4.88 KiB are free"):
        check_room(tmp_path, 2 << 20, otherwise="make room")
