"""What each process of test_selection.py does: it selects with the others, and prints its own pairs.

The processes are a grid of row groups x latent groups. The numbers to compare have many ties.
"""

import json
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from saecache.distributed import join_world
from saecache.train.backends import choice
from saecache.train.backends.sources import Encoder, Scores
from saecache.train.latent_shards import LatentShards
from saecache.train.pairs import Pairs
from saecache.train.selection import agreement
from saecache.train.selection.errors import NonFiniteError

NUM_ROWS, NUM_LATENTS = 11, 200
TOTAL = 137
CANDIDATES = 60

MANY_LATENTS, K = 5000, 9  # so many that the processes agree on a bound before they select


def encoder() -> Encoder:
    """Of all latents, the same in all processes; many pre-activations tie."""
    generator = torch.Generator().manual_seed(4)
    sizes = (NUM_ROWS, 8), (MANY_LATENTS, 8), (MANY_LATENTS,)
    return Encoder(*(torch.randn(*size, generator=generator).round() for size in sizes))


def numbers() -> Tensor:
    """[B, F], the same in all processes."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-3, 4, (NUM_ROWS, NUM_LATENTS), generator=generator).float()


def counts() -> Tensor:
    """The number of rows of each latent, from none to all: int64 [F]."""
    return torch.arange(NUM_LATENTS) % (NUM_ROWS + 1)


def main(row_groups: int, first_rows: int) -> dict[str, object]:
    """Select in a grid whose first row group has ``first_rows`` of the rows."""
    agreement.CANDIDATES = CANDIDATES  # so that the latents are compared in several blocks
    compare, compared = agreement._largest_of_each, [0]

    def watched(values: Tensor, *arguments: Tensor) -> Tensor:
        compared.append(len(values))
        return compare(values, *arguments)

    agreement._largest_of_each = watched
    with join_world() as world:
        size = world.size // row_groups
        group = world.split([range(size * r, size * (r + 1)) for r in range(row_groups)])
        row_group = world.split([range(i, world.size, size) for i in range(size)])
        shards = LatentShards.divide(NUM_LATENTS, group)
        edges = [0, first_rows, NUM_ROWS] if row_groups == 2 else [0, NUM_ROWS]
        rows = slice(edges[row_group.rank], edges[row_group.rank + 1])
        own = numbers()[rows, shards.own].contiguous()

        def stream() -> Iterator[tuple[int, Tensor]]:
            for start in range(0, len(own), 2):
                yield start, own[start : start + 2].clone()

        scores = Scores(stream, len(own), shards.count, own.device)
        sharers, backend = agreement.Sharers(shards, row_group), choice.backend_of(own)

        def places(pairs: Pairs) -> list[list[int]]:
            assert torch.equal(pairs.value, own[pairs.rows(), pairs.latent])
            return torch.stack([pairs.rows() + rows.start, pairs.latent + shards.first], dim=1).tolist()

        hints = None, torch.tensor(2.5), torch.tensor(-2.5)
        found = [agreement.largest_of_batch(backend, scores, TOTAL, hint, sharers) for hint in hints]
        assert len({float(guess) for _, guess in found if guess is not None}) == 1
        own_counts = shards.part(counts())
        many = LatentShards.divide(MANY_LATENTS, group)
        x, W, b = encoder().x_centered[rows], many.part(encoder().W_enc), many.part(encoder().b_enc)
        search, searches = backend.search_rows, []
        backend.search_rows = lambda *arguments: (searches.append(1), search(*arguments))[1]
        before = group.traffic.bytes
        largest = agreement.largest_per_row(backend, Encoder(x, W, b), K, many)
        sent = group.traffic.bytes - before
        some = world.everyone.rank == world.size - 1
        try:
            broken = Encoder(x, W, torch.full_like(b, torch.nan) if some else b)
            agreement.largest_per_row(backend, broken, K, many)
            failed = ""
        except NonFiniteError as error:
            failed = str(error)
        return {
            "batch": places(found[0][0]),
            "same": [places(pairs) == places(found[0][0]) for pairs, _ in found],
            "latent": places(agreement.largest_per_latent(backend, scores, own_counts, sharers)),
            "compared": max(compared),
            "row": torch.stack([largest.rows() + rows.start, largest.latent + many.first], dim=1).tolist(),
            "values": largest.value.tolist(),
            "searches": len(searches),
            "sent": sent,
            "rows": len(x),
            "failed": failed,
        }


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
