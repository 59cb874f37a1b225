"""Encoders that are easy and hard to select from, and all sources of their pre-activations."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from saecache.train.backends.choice import load_backend, use_backend
from saecache.train.backends.sources import Encoder, Scores
from saecache.train.pairs import Pairs
from saecache.train.selection.pre_activations import PreActivations

CHEAPEST_PRODUCT = "saecache.train.backends.compiled.selection.scored_blocks.cheapest_product"
ROWS, LATENTS, WIDTH, BLOCK_ROWS = 37, 700, 24, 16  # the last chunk of latents and the last block are short


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, which is faster at these sizes; ``test_threads`` tests several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


Factors = tuple[Tensor, Tensor, Tensor]
MarkPairs = Callable[[Pairs], Tensor]


def random(seed: int = 0) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, WIDTH, generator=generator)
    W = torch.randn(LATENTS, WIDTH, generator=generator)
    return x, W, torch.randn(LATENTS, generator=generator)


def anisotropic() -> Factors:
    """All rows and latents nearly point in one direction and have very different norms: bounds are loose."""
    x, W, b = random()
    common = torch.linspace(1, 3, WIDTH)
    lengths = torch.logspace(-2, 2, LATENTS)[:, None]
    return 30 * common + x, lengths * (common + 0.1 * W), b


def ties() -> Factors:
    """There are few different values, all exact in bfloat16, so nearly every comparison is a tie."""
    x, W, b = random()
    return x.round().clamp(-1, 1), W.round().clamp(-1, 1), b.round().clamp(-1, 1)


def constant() -> Factors:
    return torch.ones(ROWS, WIDTH), torch.ones(LATENTS, WIDTH), torch.zeros(LATENTS)


def zeros() -> Factors:
    """Rows and latents of zeros, and pre-activations of both signs of zero."""
    x, W, b = random()
    x[::3] = 0
    W[::2] = 0
    b[::2] = -0.0
    return x, W, b


def negative() -> Factors:
    x, W, b = random()
    return x.abs(), -W.abs(), b - 5


def large_biases() -> Factors:
    """Biases far larger than the scores; a bound relative to the biased score would be wrong."""
    x, W, b = random()
    return x, W, 1000 * b.round()


def duplicates() -> Factors:
    """Equal rows and equal latents."""
    x, W, b = random()
    return x[torch.arange(ROWS) % 5], W[torch.arange(LATENTS) % 9], b[torch.arange(LATENTS) % 9]


def tiny() -> Factors:
    """The squares of these numbers are not float32 numbers."""
    x, W, b = random()
    return x * 1e-24, W, b * 1e-25


CASES = {
    case.__name__: case()
    for case in (random, anisotropic, ties, constant, zeros, negative, large_biases, duplicates, tiny)
}


@pytest.fixture(params=CASES)
def factors(request: pytest.FixtureRequest) -> Factors:
    return CASES[request.param]


@dataclass(frozen=True)
class Source:
    """The object that a rule queries, and its pre-activations [B, F]."""

    pre_activations: PreActivations
    pre: Tensor


@cache
def by_definition(factors: Factors, backend: str = "compiled") -> Tensor:
    """The exact pre-activation of every pair, computed alone: [B, F]."""
    x, W, b = factors
    every = Pairs.from_dense(torch.ones(x.shape[0], W.shape[0]))
    return (load_backend(backend).sddmm(every, x, W) + b[every.latent]).view(x.shape[0], W.shape[0])


@pytest.fixture
def given() -> Callable[[Tensor], PreActivations]:
    """Given numbers [B, F] as scores, in blocks that share one buffer."""

    def make(pre: Tensor, *block_rows: int) -> PreActivations:
        num_rows, num_latents = pre.shape
        encoder = Encoder(torch.zeros(num_rows, 1), torch.zeros(num_latents, 1), torch.zeros(num_latents))

        def stream() -> Iterator[tuple[int, Tensor]]:
            buffer = torch.empty(max(block_rows, default=BLOCK_ROWS), num_latents)
            first = 0
            for size in block_rows or [BLOCK_ROWS] * -(-num_rows // BLOCK_ROWS):
                part = pre[first : first + size]
                yield first, buffer[: len(part)].copy_(part)
                first += size

        scores = Scores(stream, num_rows, num_latents, pre.device)
        return PreActivations(encoder, num_latents=num_latents, scores=scores)

    return make


@pytest.fixture
def make_source(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    given: Callable[[Tensor], PreActivations],
) -> Callable[[str, Factors], Source]:
    """``make_source(kind, factors)``; see :data:`SOURCES`."""

    def make(kind: str, factors: Factors) -> Source:
        if kind.startswith("given"):
            pre = by_definition(factors)
            return Source(given(pre), pre)
        encoder = Encoder(*factors, block_rows=BLOCK_ROWS)
        asked = PreActivations(encoder, num_latents=encoder.num_latents)
        if kind.endswith("plain"):
            if kind in ROUNDED_PRODUCTS:
                request.getfixturevalue("round_products")(*ROUNDED_PRODUCTS[kind])
            return Source(asked, by_definition(factors, "plain"))
        monkeypatch.setattr(CHEAPEST_PRODUCT, lambda *_: kind)
        return Source(asked, by_definition(factors))

    return make


ROUNDED_PRODUCTS = {"tf32_plain": (10, True), "bfloat16_plain": (7, False)}  # for ``round_products``
SOURCES = ("float32", "bfloat16", "int8", "given", "given_plain", "encoder_plain", *ROUNDED_PRODUCTS)


@pytest.fixture(params=SOURCES)
def source(
    request: pytest.FixtureRequest, factors: Factors, make_source: Callable[[str, Factors], Source]
) -> Iterator[Source]:
    """Every case with every source: screened by each product, given, and on the plain backend."""
    made = make_source(request.param, factors)
    with use_backend("plain" if request.param.endswith("plain") else "compiled"):
        yield made


@pytest.fixture
def marked() -> MarkPairs:
    """The places of pairs as bool [B, F]; also checks the invariants of :class:`Pairs`."""

    def mark(pairs: Pairs) -> Tensor:
        assert pairs.row_ptr[0] == 0
        assert pairs.row_ptr[-1] == len(pairs) == pairs.value.numel()
        places = pairs.rows() * pairs.num_latents + pairs.latent
        assert bool((places.diff() > 0).all()), "pairs are not in ascending order"
        mask = torch.zeros(pairs.num_rows * pairs.num_latents, dtype=torch.bool)
        mask[places] = True
        return mask.view(pairs.num_rows, pairs.num_latents)

    return mark
