"""FVU of the largest k' codes against a dense top-k in float64."""

import numpy as np
import pytest
import torch

from saecache.evaluate.metrics.progressive import KEPT, ProgressiveStream, rank_within_rows
from saecache.train import SAE, Pairs
from saecache.train.variants.topk import TopK

from ..conftest import HOOK, make_sae


@pytest.fixture
def rows(cache) -> torch.Tensor:
    return cache.rows(HOOK, np.arange(300), split="heldout")


@pytest.fixture
def sae(cache) -> SAE:
    sae = make_sae(cache, "topk", TopK(k=12))
    sae.W_dec *= torch.rand(len(sae.W_dec), 1, generator=torch.Generator().manual_seed(2)) + 0.5
    return sae


def dense_fvu(sae: SAE, x: torch.Tensor, kept: int) -> float:
    codes, W_dec = sae.encode(x).double(), sae.W_dec.double()
    size = codes.abs() * W_dec.norm(dim=1)
    smallest = size.topk(min(kept, size.shape[1]), dim=1).values[:, -1:]
    reconstruction = codes.where(size >= smallest, torch.zeros_like(codes)) @ W_dec + sae.b_dec.double()
    x = x.double()
    return float((x - reconstruction).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("block", [300, 41])
def test_every_step_is_the_dense_one(sae: SAE, rows: torch.Tensor, block: int) -> None:
    stream = ProgressiveStream(sae)
    for part in rows.split(block):
        stream.update(part, sae.encode_sparse(part))
    steps = stream.result()
    assert [step.kept for step in steps] == [1, 2, 4, 8, 16]
    for step in steps:
        assert step.fvu == pytest.approx(dense_fvu(sae, rows, step.kept), rel=1e-5)
    l0 = (sae.encode(rows) != 0).sum(1).double()
    assert [step.l0 for step in steps] == pytest.approx([l0.clamp_max(k).mean().item() for k in KEPT[:5]])


def test_all_codes_have_the_fvu_of_the_whole(sae: SAE, rows: torch.Tensor) -> None:
    stream = ProgressiveStream(sae)
    stream.update(rows, sae.encode_sparse(rows))
    x = rows.double()
    whole = (x - sae(rows).double()).square().sum() / (x - x.mean(0)).square().sum()
    assert stream.result()[-1].fvu == pytest.approx(whole.item(), rel=1e-5)


def test_rows_without_codes_and_no_rows(sae: SAE, rows: torch.Tensor) -> None:
    stream = ProgressiveStream(sae)
    assert stream.result() == []
    none = Pairs.from_dense(torch.zeros(len(rows), sae.cfg.num_latents))
    stream.update(rows, none)
    (step,) = stream.result()
    x = rows.double()
    expected = (x - sae.b_dec.double()).square().sum() / (x - x.mean(0)).square().sum()
    assert (step.kept, step.l0) == (1, 0)
    assert step.fvu == pytest.approx(expected.item(), rel=1e-6)


def test_ranks_within_rows() -> None:
    dense = torch.tensor(
        [[0.0, 3.0, -5.0, 3.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, 2.5, 0.0, 0.1]]
    )
    codes = Pairs.from_dense(dense)
    assert rank_within_rows(codes, torch.ones(4)).tolist() == [1, 0, 2, 0, 1, 0, 2]
    assert rank_within_rows(codes, torch.tensor([1.0, 1.0, 0.1, 1.0])).tolist() == [0, 2, 1, 0, 1, 0, 2]
