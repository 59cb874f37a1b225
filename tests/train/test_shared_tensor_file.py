"""A file that processes write together is the one that safetensors writes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from saecache.train.shared_tensor_file import lay_out, shared_names
from saecache.train.tensor_file import DTYPES, TensorInfo


@pytest.mark.parametrize("names", [("b", "a", "Ü/ö", 'q"\\'), ("exp_avg.W_enc", "W_dec", "threshold")])
def test_the_header_is_that_of_safetensors(names: tuple[str, ...], tmp_path: Path) -> None:
    shapes = ((), (3,), (5, 2), (0, 4))
    tensors = {
        f"{name}{i}": torch.zeros(shape, dtype=dtype)
        for name in names
        for i, (dtype, shape) in enumerate((d, s) for d in DTYPES.values() for s in shapes)
    }
    save_file(tensors, tmp_path / "file")
    header, offsets = lay_out({name: TensorInfo.of(tensor) for name, tensor in tensors.items()})
    assert (tmp_path / "file").read_bytes()[: len(header)] == header
    assert offsets.keys() == tensors.keys()


def test_biases_of_the_width_and_single_numbers_are_not_shared() -> None:
    tensors = {name: torch.zeros(3) for name in ("W_enc", "b_enc", "optimizer/exp_avg.b_dec", "b_dec")}
    assert shared_names({**tensors, "threshold": torch.zeros(())}) == ["W_enc", "b_enc"]
