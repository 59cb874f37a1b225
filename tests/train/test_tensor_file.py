"""Files of tensors, whose writing fails."""

import os
import resource
from pathlib import Path

import pytest
import torch

from saecache.train.tensor_file import TensorInfo, read_header, write_tensors

SMALL, LARGE = {"x": torch.zeros(3)}, {"x": torch.zeros(1 << 16)}


def test_what_does_not_fit_leaves_the_former_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "weights.safetensors"
    write_tensors(path, SMALL)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # a real refusal to write on
    try:
        with pytest.raises(OSError, match=r"cannot write .*weights\.safetensors"):
            write_tensors(path, LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(path.parent.iterdir()) == [path]
    assert read_header(path) == {"x": TensorInfo(torch.float32, (3,))}


def test_what_cannot_be_synced_leaves_the_former_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    write_tensors(path, SMALL)

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, LARGE)
    assert list(tmp_path.iterdir()) == [path]
    assert read_header(path) == {"x": TensorInfo(torch.float32, (3,))}
