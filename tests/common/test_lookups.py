"""A look at a path says what is there, whatever the path is."""

from pathlib import Path

import pytest

from saecache.common.lookups import exists, expanded, is_file, is_folder, is_link, why_impossible


@pytest.mark.parametrize(
    "name", ["x" * 5000, "x" * 300, "a\0b", "\ud800", "none", "loop", "loop/x", "file/x"]
)
def test_nothing_is_there(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert not any(look(tmp_path / name) for look in (exists, is_file, is_folder))
    assert is_link(tmp_path / name) == (name == "loop")
    assert (why_impossible(tmp_path / name) is None) == (name in ("none", "loop", "file/x"))


def test_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    assert exists(tmp_path / "file") and is_file(tmp_path / "file") and not is_folder(tmp_path / "file")
    assert is_folder(str(tmp_path / "link")) and is_link(tmp_path / "link") and not is_link(tmp_path)


def test_the_home_of_a_user() -> None:
    assert expanded("~/x") == Path.home() / "x"
    assert expanded("~nobody_of_this_name/x") == Path("~nobody_of_this_name/x")
