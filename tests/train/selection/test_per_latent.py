import pytest
import torch

from saecache.train.backends.compiled.selection.latent_candidates import LatentCandidates
from saecache.train.backends.compiled.selection.scored_blocks import given_block
from saecache.train.selection import reference


def uneven_counts() -> torch.Tensor:
    counts = torch.arange(700) * 7919 % 9
    counts[3], counts[650] = 37, 0
    return counts


@pytest.mark.parametrize("counts", [torch.full((700,), 2), uneven_counts()])
def test_equals_the_definition(source, marked, counts):
    pairs = source.pre_activations.largest_per_latent(counts)
    assert torch.equal(marked(pairs), reference.per_latent(source.pre, counts))
    assert torch.equal(pairs.value, source.pre[pairs.rows(), pairs.latent])


def test_nothing_wanted(factors, make_source):
    source = make_source("bfloat16", factors)
    assert len(source.pre_activations.largest_per_latent(torch.zeros(700, dtype=torch.int64))) == 0


def test_more_latents_than_one_thread_looks_after(make_source, marked):
    generator = torch.Generator().manual_seed(0)
    factors = (
        torch.randn(90, 8, generator=generator),
        torch.randn(5000, 8, generator=generator),
        torch.zeros(5000),
    )
    counts = torch.arange(5000) % 4
    for kind in ("float32", "bfloat16", "int8", "given"):
        source = make_source(kind, factors)
        pairs = source.pre_activations.largest_per_latent(counts)
        assert torch.equal(marked(pairs), reference.per_latent(source.pre, counts))


def test_memory_does_not_grow_with_rows():
    generator = torch.Generator().manual_seed(0)
    reserved = []
    for num_blocks in (4, 64):
        candidates = LatentCandidates(torch.full((256,), 3).numpy())
        for block in range(num_blocks):
            candidates.add(given_block(100 * block, torch.randn(100, 256, generator=generator)))
        reserved.append(sum(part.row.size for part in candidates._parts))
    assert reserved[0] == reserved[1] <= 4 * 256 * 4


def test_rising_scores_are_the_worst_case(marked, given):
    """Every row has larger scores than those before it, so it is a candidate until the next row comes."""
    pre = torch.arange(500.0)[:, None].expand(500, 70).contiguous()
    pairs = given(pre, 300, 200).largest_per_latent(torch.full((70,), 2))
    assert torch.equal(marked(pairs), reference.per_latent(pre, torch.full((70,), 2)))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.full((5,), 7), "counts must be from 0 to the number of rows, 4, got 7 to 7"),
        (torch.full((5,), -1), "got -1 to -1"),
        (torch.full((6,), 1), r"counts must be int64 \[5\], got torch.int64 \[6\]"),
        (torch.full((5,), 1.0), r"counts must be int64 \[5\], got torch.float32 \[5\]"),
    ],
)
def test_impossible_counts(make_source, counts, message):
    source = make_source("given", (torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(5)))
    with pytest.raises(ValueError, match=message):
        source.pre_activations.largest_per_latent(counts)
