"""What 'auto' means for device, number type and batch size."""

import pytest
import torch

from saecache.harvest.model import numerics
from saecache.harvest.model.forward import block_sequences, cpu_block, search_batch_size, whole_blocks
from saecache.harvest.model.numerics import resolve_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("width", "has_it", "speedup", "expected"),
    [
        (768, True, 2.0, "bfloat16"),
        (768, True, 1.1, "float32"),
        (768, False, 2.0, "float32"),
        (128, True, 2.0, "float32"),
    ],
)
def test_bfloat16_on_a_cpu_only_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, width: int, has_it: bool, speedup: float, expected: str
) -> None:
    monkeypatch.setattr(numerics, "_cpu_has_bf16", lambda: has_it)
    monkeypatch.setattr(numerics, "cpu_bf16_speedup", lambda _width: speedup)
    assert resolve_dtype("auto", CPU, width) == expected
    assert resolve_dtype("float16", CPU, width) == "float16"


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bfloat16"), (False, "float16")])
def test_bfloat16_on_gpus_that_have_it(monkeypatch: pytest.MonkeyPatch, has_it: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert resolve_dtype("auto", torch.device("cuda"), 64) == expected
    assert resolve_dtype("auto", torch.device("mps"), 64) == "float16"


def test_the_measurement_is_a_ratio() -> None:
    assert 0.01 < numerics.cpu_bf16_speedup(64, rows=16) < 100


def test_cpu_blocks_do_not_depend_on_the_batch() -> None:
    for context in (5, 64, 1024):
        assert {block_sequences(CPU, context, size) for size in (1, 7, 99)} == {cpu_block(context)}
    assert cpu_block(1024) == 1 and cpu_block(64) == 8
    assert block_sequences(torch.device("cuda"), 64, 7) == 7
    assert [whole_blocks(size, 8) for size in (1, 8, 9)] == [8, 8, 16]


def seconds(fits: int, knee: int):
    """A device that gets no faster beyond ``knee`` and has memory for ``fits``."""

    def step(size: int) -> float:
        if size > fits:
            raise torch.OutOfMemoryError
        return max(1.0, size / knee)

    return step


@pytest.mark.parametrize(
    ("fits", "knee", "expected"),
    [(10**9, 64, 64), (10**9, 10**9, 1024), (100, 10**9, 32), (2, 10**9, 2), (0, 1, 1), (10**9, 1, 4)],
)
def test_batch_size_is_doubled_while_it_pays_and_fits(fits: int, knee: int, expected: int) -> None:
    assert search_batch_size(seconds(fits, knee), 4, 1024) == expected
