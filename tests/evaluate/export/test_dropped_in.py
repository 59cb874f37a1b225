"""A file that is put into the folder of formats is a format, with advice of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from saecache.cli import app
from saecache.common.errors import SaecacheError, UsageError
from saecache.evaluate.export import export_sae, formats

from .conftest import Trained

DROPPED = """
import torch

from .saelens import SAELens


class Dropped(SAELens):
    steps = {"rms_norm": "Dropped computes nothing."}

    def read(self, folder):
        read = super().read(folder)
        return lambda v: tuple(torch.zeros_like(part) for part in read(v))


FORMAT = Dropped()
"""


@pytest.fixture
def _dropped_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "formats"
    folder.mkdir()
    (folder / "dropped.py").write_text(DROPPED)
    monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(folder)])
    formats.load_formats.cache_clear()
    yield
    formats.load_formats.cache_clear()
    sys.modules.pop(f"{formats.__name__}.dropped", None)
    vars(formats).pop("dropped", None)


@pytest.mark.usefixtures("_dropped_in")
def test_a_file_in_the_folder_is_a_format(trained: Trained, tmp_path: Path) -> None:
    folder = trained("topk", "rms_norm")
    assert "dropped" in formats.format_names()
    with pytest.raises(SaecacheError, match="Dropped computes nothing"):
        export_sae(folder, "dropped", tmp_path / "out")
    with pytest.raises(UsageError, match="has no such step: use --format saelens or dropped, which"):
        export_sae(folder, "sparsify", tmp_path / "out")


def test_the_help_names_all_formats() -> None:
    shown = " ".join(CliRunner().invoke(app, ["export", "--help"], terminal_width=200).stdout.split())
    assert f"{', '.join(formats.format_names())}: the SAE; delphi" in shown
