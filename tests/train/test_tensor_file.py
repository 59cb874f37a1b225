"""Files of tensors: their bytes, who may read them, and writing that fails."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saecache.train.tensor_file import DTYPES, TensorInfo, read_header, sha256_of, write_tensors

SMALL, LARGE = {"x": torch.zeros(3)}, {"x": torch.zeros(1 << 16)}


@pytest.mark.parametrize("names", [("b", "a", "Ü/ö", 'q"\\'), ("exp_avg.W_enc", "W_dec", "threshold")])
def test_the_bytes_are_those_of_safetensors(names: tuple[str, ...], tmp_path: Path) -> None:
    shapes = ((), (3,), (5, 2), (0, 4))
    tensors = {
        f"{name}{i}": torch.randint(0, 2, shape).to(dtype)
        for name in names
        for i, (dtype, shape) in enumerate((d, s) for d in DTYPES.values() for s in shapes)
    }
    tensors["not contiguous"] = torch.arange(6.0).reshape(2, 3).T
    path = tmp_path / "ours"
    checksum = write_tensors(path, tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    assert path.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert checksum == sha256_of(path)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "ours", {})
    save_file({}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_others_may_read_it_as_the_mask_of_the_user_says(mask: int, mode: int, tmp_path: Path) -> None:
    """A team trains on a shared disk."""
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "file", SMALL)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_what_a_killed_process_has_left_goes(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; import torch; from saecache.train import tensor_file\n"
        "tensor_file.append_early = lambda file, block: (file.write(block[:9]), os._exit(9))\n"
        "tensor_file.write_tensors(Path(sys.argv[1]), {'x': torch.zeros(9)})"
    )
    path = tmp_path / "weights.safetensors"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 9
    assert len(list(tmp_path.iterdir())) == 1
    write_tensors(path, SMALL)
    assert list(tmp_path.iterdir()) == [path]


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
