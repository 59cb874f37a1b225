"""The rounded encoder is kept from step to step, and never stale."""

import torch

from saecache.train.backends.protocol import AdamSettings
from saecache.train.backends.triton import backend
from saecache.train.backends.triton.kept_rows import kept_rows, rows_to_refresh
from saecache.train.backends.triton.rounding import round_latents

from .cases import assert_close, numbers


def assert_fresh(W: torch.Tensor) -> None:
    kept, fresh = kept_rows(W), round_latents(W)
    assert torch.equal(kept.rounded, fresh.rounded)
    assert_close(kept.factor, fresh.factor, whole=False)
    assert_close(kept.norm, fresh.norm, whole=False)


def test_the_optimizer_refreshes_what_is_kept() -> None:
    W, gradient = numbers(9, 20, seed=1, whole=False), numbers(9, 20, seed=2, whole=False)
    assert rows_to_refresh(W) is None, "nothing has asked for them yet"
    first = kept_rows(W)
    settings = AdamSettings(learning_rate=0.1, betas=(0.9, 0.999), eps=1e-8)
    backend.adam_step(W, gradient, torch.zeros_like(W), torch.zeros_like(W), 1, settings)
    assert kept_rows(W) is first, "they were not made again"
    assert_fresh(W)


def test_changes_by_torch_are_seen() -> None:
    W = numbers(9, 20, seed=1, whole=False)
    first = kept_rows(W)
    W[3] = 7.0  # as resampling does, and loading a checkpoint
    assert rows_to_refresh(W) is None
    assert kept_rows(W) is not first
    assert_fresh(W)
    with torch.inference_mode():
        assert rows_to_refresh(torch.ones(3, 4)) is None
