"""One function picks the device of every stage."""

from types import SimpleNamespace

import pytest
import torch

from saecache.common.devices import choose_device
from saecache.common.errors import UsageError


@pytest.mark.parametrize("name", ["mps", "cuda", "cuda:1", "cuda:99", "abacus"])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    if name in ("cuda", "cuda:1") and torch.cuda.device_count() > int(name == "cuda:1"):
        pytest.skip("this machine has it")
    with pytest.raises(UsageError, match=f"device='{name}' cannot be used here: .*; available: .*cpu"):
        choose_device(name)


@pytest.mark.parametrize("float64", [False, True])
def test_the_cpu_is_always_there(float64: bool) -> None:
    assert choose_device("cpu", float64=float64) == torch.device("cpu")
    assert choose_device("auto", float64=float64).type in ("cpu", "cuda", "mps")


def test_auto_passes_over_mps_where_sums_are_kept_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    assert choose_device("auto", float64=True).type == "cpu"


@pytest.mark.parametrize(
    ("name", "local_rank", "expected"),
    [
        ("auto", 3, "cuda:1"),
        ("cuda", 0, "cuda:0"),
        ("cuda:0", 3, None),
        ("cpu", 3, None),
        ("auto", None, None),
    ],
)
def test_each_process_of_a_machine_takes_a_gpu_of_its_own(
    name: str, local_rank: int | None, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch, "empty", lambda _, device, dtype: SimpleNamespace(device=torch.device(device)))
    chosen = choose_device(name, local_rank=local_rank)
    assert chosen == torch.device(expected or {"auto": "cuda"}.get(name, name))
    assert current == ([expected] if expected else [])


@pytest.mark.parametrize("name", ["hpu", "privateuseone", "meta", "meta:0", "", "a\0b", "\ud800"])
def test_names_of_torch_that_are_no_device_to_work_on(name: str) -> None:
    with pytest.raises(UsageError, match=r"cannot be used here: (?s:.)*; available: .*cpu"):
        choose_device(name)
