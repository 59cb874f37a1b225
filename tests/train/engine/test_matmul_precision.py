"""``matmul_precision`` is set during the run only, and no selection depends on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from saecache.store.reading.reader import ActivationCache
from saecache.train import TrainConfig, load_sae, run
from saecache.train.engine.trainee import Trainee

TOPK = {"kind": "topk", "k": 4}


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_the_precision_holds_in_every_step_and_is_restored(
    cache: ActivationCache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    seen = set()
    update = Trainee.update

    def watched(self: Trainee, rate_factor: float) -> None:
        seen.add(torch.get_float32_matmul_precision())
        update(self, rate_factor)

    monkeypatch.setattr(Trainee, "update", watched)
    before = torch.get_float32_matmul_precision()
    run(make_config(TOPK, {**TOPK, "k": 5}, matmul_precision=precision, steps=2), cache, tmp_path / "run")
    assert seen == {precision}
    assert torch.get_float32_matmul_precision() == before


def test_sparse_variants_learn_the_same_and_dense_ones_nearly_so(
    cache: ActivationCache, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    relu = {"kind": "relu", "l1": {"coefficient": 0.05}}
    found = {}
    for precision in ("highest", "medium"):
        config = make_config(TOPK, relu, matmul_precision=precision)
        found[precision] = run(config, cache, tmp_path / precision).saes
    exact, rounded = ({n: load_sae(p) for n, p in saes.items()} for saes in found.values())
    assert torch.equal(exact["topk_k4"].W_enc, rounded["topk_k4"].W_enc)
    name = next(n for n in exact if n.startswith("relu"))
    torch.testing.assert_close(exact[name].W_dec, rounded[name].W_dec, atol=0.02, rtol=0.05)
