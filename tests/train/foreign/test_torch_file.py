"""``ae.pt`` is read without unpickling it: nothing of the file's choice is imported or called."""

import collections
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from saecache.common.errors import UsageError
from saecache.train.foreign.tensor_files import open_tensors

from ...hostile import right_or_refused

MARK = "SAECACHE_TEST_OF_A_PICKLE_THAT_RAN"


class Evil:
    def __reduce__(self) -> Any:
        return exec, (f"import os; os.environ[{MARK!r}] = 'yes'",)


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    yield
    assert MARK not in os.environ


def test_tensors_of_every_type_are_those_that_torch_saved(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(6, 10, generator=random)
    saved = {
        "float": base,
        "double": base.double(),
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "long": torch.arange(7),
        "int": torch.tensor(5, dtype=torch.int),
        "bool": torch.tensor([True, False]),
        "transposed": base.T,
        "part": base[2:4, 3:],
        "scalar": torch.tensor(0.25),
        "empty": torch.zeros(0, 3),
    }
    torch.save(saved, tmp_path / "t.pt")
    file = open_tensors(tmp_path / "t.pt")
    assert file.tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        got = file.read(name)
        assert got.dtype == tensor.dtype and torch.equal(got, tensor), name
        assert file.shape(name) == tuple(tensor.shape)


def test_state_dicts_and_parameters(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    torch.save(module.state_dict(), tmp_path / "state.pt")  # an OrderedDict with attributes
    torch.save(collections.OrderedDict(weight=module.weight), tmp_path / "parameter.pt")
    assert torch.equal(open_tensors(tmp_path / "state.pt").read("bias"), module.bias)
    assert torch.equal(open_tensors(tmp_path / "parameter.pt").read("weight"), module.weight)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": Evil()}, "it would call"),
        (Evil(), "it would call builtins exec|it would call __builtin__ exec"),
        ({"a": 1}, "entry 'a' is no tensor"),
        ({1: torch.zeros(1)}, "entry 1 is no tensor"),
        ({"model": {"a": torch.zeros(1)}}, "entry 'model' is no tensor"),
        (torch.zeros(1), "it holds a StoredTensor"),
        (nn.Linear(2, 2), "it would call|instruction"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a storage is described in another way"),
        ({"a": torch.zeros(1).expand(10**9)}, "a tensor is larger than its storage"),
        ({"a": torch.zeros(2).to_sparse()}, "it would call|instruction"),
    ],
)
def test_other_things_are_refused_and_nothing_runs(value: Any, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "t.pt")
    with pytest.raises(UsageError, match=message):
        open_tensors(tmp_path / "t.pt")


def test_a_file_of_torch_before_zip_archives(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": Evil()}))
    for name in ("old.pt", "pickle.pt"):
        with pytest.raises(UsageError, match="it is no zip archive"):
            open_tensors(tmp_path / name)


def test_names_that_would_be_imported_are_only_compared(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:
        archive.writestr("t/data.pkl", b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00echo\x85R.")
    with pytest.raises(UsageError, match="it would call os system"):
        open_tensors(tmp_path / "t.pt")


def test_compressed_and_large_descriptions_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(UsageError, match="is compressed, which is not read"):
        open_tensors(tmp_path / "t.pt")
    with zipfile.ZipFile(tmp_path / "u.pt", "w") as archive:
        archive.writestr("t/data.pkl", b"\0" * (1 << 17))
    with pytest.raises(UsageError, match="has more than 65536 bytes"):
        open_tensors(tmp_path / "u.pt")
    np.savez_compressed(tmp_path / "c.npz", a=np.zeros(1000, np.float32))
    with pytest.raises(UsageError, match="is compressed, which is not read"):
        open_tensors(tmp_path / "c.npz")


def test_a_flipped_bit_is_found_by_the_checksum(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "t.pt")
    content = bytearray((tmp_path / "t.pt").read_bytes())
    content[content.index(torch.ones(8).numpy().tobytes()) + 400] ^= 1
    (tmp_path / "t.pt").write_bytes(content)
    with pytest.raises(UsageError, match="cannot be read: member 't/data/0'"):
        open_tensors(tmp_path / "t.pt").read("a")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", "<f8", "<i8"])
def test_arrays_of_numpy(order: Any, dtype: str, tmp_path: Path) -> None:
    array = np.arange(24).reshape(4, 6).astype(dtype, order=order)
    np.savez(tmp_path / "a.npz", a=array, empty=array[:0], one=array[0, 0])
    file = open_tensors(tmp_path / "a.npz")
    assert np.array_equal(file.read("a").numpy(), array)
    assert file.shape("empty") == (0, 6) and file.read("empty").numel() == 0
    assert file.number("one") == 0


@pytest.mark.parametrize("array", [np.array([Evil()], dtype=object), np.array(["text"]), np.zeros(3, ">f4")])
def test_arrays_that_hold_no_plain_numbers(array: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=array)
    with pytest.raises(UsageError, match="no plain floats"):
        open_tensors(tmp_path / "a.npz")


def test_a_name_whose_hash_takes_for_ever(tmp_path: Path) -> None:
    """A pickle of some hundred bytes: a tuple that holds one tuple twice, which does so too, and so on."""
    doubled = b"h\x00h\x00\x86q\x00" * 100
    with zipfile.ZipFile(tmp_path / "t.pt", "w") as archive:
        archive.writestr("t/data.pkl", b"\x80\x02})q\x00" + doubled + b"Ns.")

    def read() -> None:
        with pytest.raises(UsageError, match="the name of an entry is no text"):
            open_tensors(tmp_path / "t.pt")

    right_or_refused(read)


@pytest.mark.parametrize("name", ["a.npz", "a.pt"])
def test_a_member_that_says_to_be_larger_than_the_file(name: str, tmp_path: Path) -> None:
    """It is refused before the memory for it is taken, a gigabyte here."""
    path, said = tmp_path / name, 1 << 30
    if name == "a.npz":
        np.savez(path, a=np.zeros(12, np.float32))
        content = path.read_bytes().replace(b"(12,)      ", f"({said // 4 - 32},)".encode())  # 32: its header
    else:
        torch.save({"a": torch.zeros(12)}, path)
        content = path.read_bytes().replace(
            b"K\x0ctq\x03Q", b"J" + (said // 4).to_bytes(4, "little") + b"tq\x03Q"
        )
    path.write_bytes(_with_size(content, b"a.npy" if name == "a.npz" else b"a/data/0", said))

    def read() -> None:
        with pytest.raises(UsageError, match="would be larger than the file"):
            open_tensors(path).read("a")

    right_or_refused(read)


def test_a_stride_that_torch_cannot_hold(tmp_path: Path) -> None:
    """Of an axis of one entry, so that no place in the storage depends on it."""
    torch.save({"a": torch.zeros(4, 1)}, tmp_path / "t.pt")
    with (
        zipfile.ZipFile(tmp_path / "t.pt") as archive,
        zipfile.ZipFile(tmp_path / "u.pt", "w") as changed,
    ):
        for name in archive.namelist():
            stride, huge = b"K\x01K\x01\x86", b"K\x01\x8a\x0a" + (1 << 70).to_bytes(10, "little") + b"\x86"
            changed.writestr(name, archive.read(name).replace(stride, huge))
    with pytest.raises(UsageError, match="a tensor's sizes are no sizes"):
        open_tensors(tmp_path / "u.pt").read("a")


def _with_size(archive: bytes, member: bytes, size: int) -> bytes:
    """The archive with another size of a member in its directory."""
    at = archive.rindex(member) - 46  # of the entry in the directory, which ends with the name
    assert archive[at : at + 4] == b"PK\x01\x02"
    return archive[: at + 20] + size.to_bytes(4, "little") * 2 + archive[at + 28 :]


@pytest.mark.parametrize("header", ["{'shape': (3,", "{'a': '''x", "  x\n y\n", "((" * 2000])
def test_a_header_of_numpy_that_does_not_end(header: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        length = len(header).to_bytes(2, "little")
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + length + header.encode())
    with pytest.raises(UsageError, match=r"member|'a\.npy' is no array"):
        open_tensors(tmp_path / "a.npz")
