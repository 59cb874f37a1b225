"""Places that cannot be written to are refused before the work; one process writes at a time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from saecache.common.errors import UsageError
from saecache.common.outputs import check_file_output, check_folder_output, take_lock
from tests.killing import DEADLINE_SECONDS


def test_places_that_work_are_left_as_they_are(tmp_path: Path) -> None:
    check_file_output(tmp_path / "new" / "folder" / "file.json")
    check_folder_output(tmp_path / "new" / "folder")
    check_folder_output(tmp_path)
    (tmp_path / "there.json").write_text("{}")
    check_file_output(tmp_path / "there.json")
    assert [path.name for path in tmp_path.iterdir()] == ["there.json"]


def test_a_file_where_a_folder_should_be_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file is a file; --out must name a folder"):
        check_folder_output(tmp_path / "file")
    for check in (check_file_output, check_folder_output):
        with pytest.raises(UsageError, match=r"cannot write .*below: .*file is a file, not a folder"):
            check(tmp_path / "file" / "new" / "below")
    with pytest.raises(UsageError, match="is a folder, and a file is to be written"):
        check_file_output(tmp_path)


def test_links_to_nothing_and_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nothing", "loop"):
        with pytest.raises(UsageError, match=rf"{name} is a link to nothing, .* remove it"):
            check_folder_output(tmp_path / name)
        for check in (check_file_output, check_folder_output):
            with pytest.raises(UsageError, match=rf"{name} is a link to nothing, not a folder"):
                check(tmp_path / name / "new" / "below")
    (tmp_path / "device").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"device is a FIFO, a socket or a device, .* remove it"):
        check_file_output(tmp_path / "device")


@pytest.mark.parametrize("what", ["a folder", "a link"])
def test_a_lock_that_is_no_file(what: str, tmp_path: Path) -> None:
    if what == "a folder":
        (tmp_path / "lock").mkdir()
    else:
        (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(UsageError, match=r"cannot lock .*out: .*lock cannot be opened .* remove it"):
        take_lock(tmp_path / "lock", tmp_path / "out", "give another --out")


@pytest.mark.parametrize("check", [check_file_output, check_folder_output])
def test_no_permission(check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(**_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    with pytest.raises(UsageError, match=r"nothing can be written into .* \(Permission denied\); choose"):
        check(tmp_path / "new" / "out")


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    lock = take_lock(tmp_path / ".lock", tmp_path / "out", "give another --out")
    with pytest.raises(UsageError, match=r"out is being written by another process: wait for it, or give"):
        take_lock(tmp_path / ".lock", tmp_path / "out", "give another --out")
    lock.release()
    take_lock(tmp_path / ".lock", tmp_path / "out", "give another --out").release()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs")
def test_a_fifo_as_a_lock_file_makes_nobody_wait(tmp_path: Path) -> None:
    """Opening one without care waits until another process opens its other end."""
    os.mkfifo(tmp_path / ".lock")
    code = (
        "import sys; from pathlib import Path; from saecache.common.outputs import take_lock;"
        "take_lock(Path(sys.argv[1]), Path('out'), 'give another --out').release()"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], timeout=DEADLINE_SECONDS, check=True
    )


@pytest.mark.parametrize("check", [check_file_output, check_folder_output])
@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300, "a\0b", "\ud800"])
@pytest.mark.parametrize("below", ["", "new", "x" * 300])
def test_names_that_no_file_can_have(check, name: str, below: str, tmp_path: Path) -> None:
    for path in (tmp_path / below / name, tmp_path / name / below):
        with pytest.raises(UsageError, match=r"cannot write '.*: .*; choose another name"):
            check(path)
