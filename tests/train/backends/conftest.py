"""Pairs of every shape that a rule can select."""

from collections.abc import Callable, Iterator

import pytest
import torch

from saecache.train.pairs import Pairs

ROWS, LATENTS, WIDTH = 150, 90, 20


def _pairs(mask: torch.Tensor) -> Pairs:
    rows, latent = mask.nonzero(as_tuple=True)
    value = torch.randn(len(rows), generator=torch.Generator().manual_seed(1))
    return Pairs.from_rows(rows, latent, value, *mask.shape)


def _random_mask(share: float) -> torch.Tensor:
    return torch.rand(ROWS, LATENTS, generator=torch.Generator().manual_seed(0)) < share


def _one_latent() -> torch.Tensor:
    mask = torch.zeros(ROWS, LATENTS, dtype=torch.bool)
    mask[:, 17] = True
    return mask


MASKS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: _random_mask(0.05),
    "dense": lambda: _random_mask(1.0),
    "empty": lambda: _random_mask(0.0),
    "one latent": _one_latent,
    "uneven rows": lambda: _random_mask(1.0).tril(diagonal=-40),
    "no rows": lambda: _random_mask(1.0)[:0],
}


@pytest.fixture(params=MASKS)
def pairs(request: pytest.FixtureRequest) -> Pairs:
    return _pairs(MASKS[request.param]())


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def normal() -> Callable[..., torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return lambda *shape: torch.randn(*shape, generator=generator)
