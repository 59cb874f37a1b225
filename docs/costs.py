"""What a cache costs in object storage, by formula: the table in ``sharing.md`` (a test compares them).

    python docs/costs.py

One hook, float16, every token kept, contexts of 1024 tokens, the default shards. Requests are those of one
push and of one pass over the training rows; what a provider asks for is in ``PRICES``.
"""

from dataclasses import dataclass

from saecache.store.config import StorageConfig
from saecache.store.remote.places.file_blocks import part_size
from saecache.store.writing.planned_size import plan_layout

TOKENS = (100_000_000, 1_000_000_000, 10_000_000_000)
WIDTHS = (768, 1024, 4096)
CONTEXT = 1024


@dataclass(frozen=True)
class Prices:
    """US dollars. S3 Standard in us-east-1 as listed in 2025; look up your provider's and run this again."""

    gigabyte_month: float = 0.023
    thousand_writes: float = 0.005
    thousand_reads: float = 0.0004
    gigabyte_out: float = 0.09  # to the internet; nothing inside the region


PRICES = Prices()


@dataclass(frozen=True)
class Costs:
    """Of one cache."""

    tokens: int
    width: int
    gigabytes: float
    objects: int
    writes: int  # of a push, which looks at each object once more with a read
    reads: int  # of one pass over the training rows

    @property
    def month(self) -> float:
        return self.gigabytes * PRICES.gigabyte_month

    @property
    def push(self) -> float:
        return self.writes / 1000 * PRICES.thousand_writes + self.objects / 1000 * PRICES.thousand_reads

    @property
    def one_pass(self) -> float:
        return self.reads / 1000 * PRICES.thousand_reads

    @property
    def out(self) -> float:
        return self.gigabytes * PRICES.gigabyte_out


def costs(tokens: int, width: int) -> Costs:
    """Bytes and objects are those that the store would write; nothing is estimated but the prices."""
    sequences = -(-tokens // CONTEXT)
    layout = plan_layout(
        {"hook": width},
        CONTEXT,
        StorageConfig(),
        train_rows=tokens,
        sequences=sequences,
        tokens="ids and documents",
    )
    sizes = [
        (spec.shard_size(shard), shards)
        for spec in layout.arrays()
        for shard, shards in ((0, spec.num_shards - 1), (spec.num_shards - 1, 1))
        if spec.num_shards and shards
    ]
    activations = layout.activations("train", "hook")
    metadata = len(layout.arrays()) + len(layout.groups()) + 2  # their zarr.json, provenance and manifest
    return Costs(
        tokens=tokens,
        width=width,
        gigabytes=layout.total_bytes() / 1e9,
        objects=sum(count for _, count in sizes) + metadata,
        writes=sum(count * _writes(size) for size, count in sizes) + metadata,
        reads=activations.num_shards,
    )


def _writes(size: int) -> int:
    """Requests that upload one object: in parts it is begun and completed too."""
    parts = -(-size // part_size(size))
    return 1 if parts == 1 else parts + 2


def table() -> str:
    """Markdown."""
    lines = [
        "| tokens | D | size | objects | storage a month | one push: requests | one pass: requests | "
        "out to the internet, once |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for tokens in TOKENS:
        for width in WIDTHS:
            c = costs(tokens, width)
            push, one_pass = f"{c.writes + c.objects:,} (${c.push:,.2f})", f"{c.reads:,} (${c.one_pass:,.3f})"
            lines.append(
                f"| {tokens / 1e9:g} billion | {width:,} | {c.gigabytes:,.0f} GB | {c.objects:,} "
                f"| ${c.month:,.2f} | {push} | {one_pass} | ${c.out:,.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
