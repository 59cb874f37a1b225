"""Selections among latents of several layers are those of one encoder with zeros for the other layers."""

import pytest
import torch
from torch import Tensor

from saecache.distributed.group import Group
from saecache.train.backends.choice import use_backend
from saecache.train.latent_shards import LatentShards
from saecache.train.layer_blocks import LayerBlocks
from saecache.train.pairs import Pairs
from saecache.train.selection import reference
from saecache.train.selection.pre_activations import HINT
from saecache.train.variants.base.rows import Rows

L, D, SIZE, B = 3, 8, 40, 50
F = L * SIZE


def example() -> tuple[Rows, Tensor]:
    """Rows of three layers of whole numbers, with many ties, and their pre-activations, [B, F]."""
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randint(-2, 3, shape, generator=generator).float() for shape in ((B, L * D), (F, D)))
    b = torch.randint(-1, 2, (F,), generator=generator).float()
    dense = x @ torch.block_diag(*W.chunk(L)).T + b
    return Rows(x_centered=x, parameters={"W_enc": W, "b_enc": b}, state={}), dense


def check(pairs: Pairs, dense: Tensor, mask: Tensor) -> None:
    places = (pairs.rows() * pairs.num_latents + pairs.latent).tolist()
    assert places == mask.flatten().nonzero().flatten().tolist()  # latents ascend within a row
    assert torch.equal(pairs.value, dense[mask])


@pytest.mark.parametrize("backend", ["plain", "compiled"])
def test_every_rule_selects_what_one_encoder_would(backend: str) -> None:
    rows, dense = example()
    with use_backend(backend):
        pre = rows.pre_activations()
        for k in (7, SIZE + 5):
            check(pre.largest_per_row(k), dense, reference.per_row(dense, k))
        counts = torch.arange(F) % 5
        check(pre.largest_per_latent(counts), dense, reference.per_latent(dense, counts))
        bars = torch.arange(F) % 7 - 1.0
        check(pre.above(bars), dense, reference.threshold(dense, bars))
        state: dict[str, Tensor] = {}
        for total in (100, 90, B * F, 1):  # each leaves a bad guess for the next
            check(pre.largest_of_batch(total, state), dense, reference.per_batch(dense, total))
            assert HINT in state
        some = torch.tensor([0, 39, 40, 41, 119])
        allowed = torch.zeros(F, dtype=torch.bool).index_fill(0, some, True)
        check(rows.pre_activations(some).above(0.0), dense, (dense > 0) & allowed)
        found = pre.largest_per_row(5)
        assert torch.equal(pre.at(found), found.value)
        computed = torch.cat([block.clone() for _, block in pre.as_computed().blocks()])
        assert torch.equal(computed, dense)


def test_the_layers_of_one_process_of_two() -> None:
    """The second of two processes has latents 60 to 119 of three layers of 40: parts of two layers."""
    shards = LatentShards.divide(F, Group(rank=1, ranks=(0, 1)))
    assert (shards.first, shards.count) == (60, 60)
    blocks = LayerBlocks(L, shards)
    assert blocks.bounds == (0, 0, 20, 60)
    assert blocks.layer_of(torch.tensor([0, 19, 20, 59])).tolist() == [1, 1, 2, 2]
    W_dec = torch.ones(60, 6)
    blocks.clear_unwritten(W_dec)
    assert W_dec.sum(0).tolist() == [0, 0, 20, 20, 60, 60]
