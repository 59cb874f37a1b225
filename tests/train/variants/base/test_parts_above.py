"""Parts of a batch have the same pairs together, whatever their sizes."""

import pytest
import torch

from saecache.train.variants.base import parts_above as module
from saecache.train.variants.base.parts_above import parts_above
from saecache.train.variants.base.rows import Batch, Outcome

R, D, F = 200, 6, 40


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    parameters = {"W_enc": torch.randn(F, D, generator=generator), "b_enc": torch.zeros(F)}
    return Batch(
        x_centered=torch.randn(R, D, generator=generator),
        target_centered=torch.randn(R, D, generator=generator),
        parameters=parameters,
        state={},
        gradients={},
        outcome=Outcome.empty(F, torch.device("cpu")),
        dead=torch.zeros(F, dtype=torch.bool),
        number=0,
        num_steps=1,
        seed=0,
        step_rows=R,
    )


@pytest.mark.parametrize("block_rows", [16, 64, 1000])
@pytest.mark.parametrize(("max_pairs", "max_rows"), [(1, 1000), (500, 1000), (10**9, 50), (10**9, 1000)])
@pytest.mark.parametrize("per_latent", [False, True])
def test_parts_together_are_the_batch(
    block_rows: int, max_pairs: int, max_rows: int, per_latent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "block_rows", lambda num_latents, device: block_rows)
    monkeypatch.setattr(module, "PAIR_SHARE", max_pairs / (32 << 20))
    monkeypatch.setattr(module, "PART_ROWS", max_rows)
    batch = make_batch()
    threshold = torch.linspace(-1, 1, F) if per_latent else 0.5
    found = list(parts_above(batch, threshold))
    assert torch.equal(torch.cat([part.x_centered for part, _ in found]), batch.x_centered)
    pre = batch.x_centered @ batch.parameters["W_enc"].T
    codes = torch.cat([pairs.to_dense() for _, pairs in found])
    assert torch.equal(codes != 0, pre > threshold)
    torch.testing.assert_close(codes, pre.where(pre > threshold, 0.0))
    assert all(part.num_rows <= max_rows for part, _ in found)
    assert found[0][0].num_rows == min(block_rows, max_rows, R)


def test_later_parts_have_the_pairs_aimed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "block_rows", lambda num_latents, device: 10)
    monkeypatch.setattr(module, "PAIR_SHARE", 800 / (32 << 20))
    found = [
        (part.num_rows, len(pairs)) for part, pairs in parts_above(make_batch(), 0.0)
    ]  # half of all pairs
    assert found[0][0] == 10 and 3 <= len(found) <= 8
    assert all(600 < pairs < 1000 for _, pairs in found[1:-1])
