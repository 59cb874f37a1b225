"""The bytes that a Triton kernel moves, by a rule: every tensor that it is given is read or written once,
whole; one that it updates in place counts twice. Rows that it gathers count each time they are asked for,
though a cache would hold many of them; so do places of a list, of which only those in use count, and rows of
a gradient, of which only those of latents with pairs do.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

UPDATED = {
    "_flat_kernel": ("parameter", "mean", "square"),
    "_rows_kernel": ("parameter", "mean", "square"),
    "_digit_kernel": ("histogram", "state"),
    "_nested_kernel": ("slopes",),
}
ADDED_TO = {"_one_kernel": ("out",), "_both_kernel": ("enc", "dec", "bias")}  # with ADD

Named = Mapping[str, Any]

LIST_SHARE = 1.0  # of the bytes of lists that count: of numbers for each row, latent or pair
MATRIX_ENTRIES = 1 << 62  # tensors of one dimension with as many are matrices


def bytes_of_kernel(name: str, named: Named) -> float:
    """The bytes of one launch; ``named``: the kernel's arguments after it ran."""
    gathered, listed = GATHERING.get(name, lambda named: (0, ()))(named)
    updated = UPDATED.get(name, ()) + (ADDED_TO.get(name, ()) if named.get("ADD") else ())
    seen: set[int] = set()
    total: float = gathered
    for argument, value in named.items():
        if not isinstance(value, Tensor) or argument in listed or value.data_ptr() in seen:
            continue  # a tensor stands in for arguments that a kernel does not look at
        seen.add(value.data_ptr())
        total += size_of(value) * (2 if argument in updated else 1)
    for argument in ADDED_TO.get(name, ()) if named.get("ADD") else ():
        total -= 2 * _untouched(named, argument)
    return total


def _untouched(named: Named, argument: str) -> int:
    """The bytes of the rows of a gradient whose latents have no pairs; every entry of the bias is written."""
    if named[argument].dim() == 1:
        return 0
    return int((named["latent_ptr"].diff() == 0).sum()) * _row(named[argument], named["D"])


def size_of(tensor: Tensor) -> float:
    """The bytes of a tensor that count."""
    is_list = tensor.dim() < 2 and tensor.numel() < MATRIX_ENTRIES
    return tensor.numel() * tensor.element_size() * (LIST_SHARE if is_list else 1)


def _entries(number: int, *tensors: Tensor) -> float:
    """The bytes that count of ``number`` entries of lists."""
    return number * sum(tensor.element_size() for tensor in tensors) * LIST_SHARE


def _row(matrix: Tensor, width: int) -> int:
    return width * matrix.element_size()


def _pairs(named: Named) -> tuple[float, tuple[str, ...]]:
    number = named["capacity"]
    if named["COUNTED"]:
        number = min(number, int(named["count"]))
    lists = _entries(number, named["row"], named["latent"], named["out"])
    return number * _row(named["W"], named["D"]) + lists, ("W", "row", "latent", "out")


def _decoded(times: int) -> Callable[[Named], tuple[float, tuple[str, ...]]]:
    def gathered(named: Named) -> tuple[float, tuple[str, ...]]:
        return times * named["latent"].numel() * _row(named["W"], named["D"]), ("W",)

    return gathered


def _segments(named: Named) -> tuple[float, tuple[str, ...]]:
    """Of the rows of long latents only."""
    long = named["segment_ptr"].diff() > 0
    rows = int(named["latent_ptr"].diff()[long].sum()) + int(named["segment_ptr"][-1])
    rows *= 2 if named["BOTH"] else 1
    return rows * _row(named["source"], named["D"]), ("source", "scratch", "source_2", "scratch_2")


def _by_latent(*sources: tuple[str, str]) -> Callable[[Named], tuple[float, tuple[str, ...]]]:
    """The rows of short latents, and the sums of the segments of long ones, of each (source, scratch)."""

    def gathered(named: Named) -> tuple[float, tuple[str, ...]]:
        short = named["segment_ptr"].diff() == 0
        rows = int(named["latent_ptr"].diff()[short].sum()) + int(named["segment_ptr"][-1])
        total = sum(rows * _row(named[source], named["D"]) for source, _ in sources)
        return total, tuple(name for pair in sources for name in pair)

    return gathered


def _scan(named: Named) -> tuple[float, tuple[str, ...]]:
    """Only the chunks that can hold a candidate; the list is written up to the last candidate."""
    scanned = _entries(int(named["number"].sum()) * named["CHUNK"], named["scores"])
    found = min(int(named["ptr"][-1]), named["room"]) if named["FILL"] else 0
    places = _entries(found, named["row"], named["column"])
    return scanned + places + size_of(named["number"]), ("scores", "row", "column", "chunks")


def _reaching(named: Named) -> tuple[float, tuple[str, ...]]:
    """Only the chunks that reach what is looked for; the list is written up to the last one that does."""
    scanned = int((named["tops"] >= named["least"][:, None]).sum()) * named["CHUNK"]
    found = min(int(named["ptr"][-1]), named["room"]) if named["FILL"] else 0
    places = _entries(found, named["column"], named["value"])
    return _entries(scanned, named["scores"]) + places, ("scores", "column", "value")


def _kept(named: Named) -> tuple[float, tuple[str, ...]]:
    """Of the list of candidates only those that are there."""
    if named.get("DENSE") or "ptr" not in named:
        return 0, ()
    found = min(int(named["ptr"][-1]), named["room"])
    return _entries(found, named["value"], named["column"]), ("value", "column")


GATHERING: dict[str, Callable[[Named], tuple[float, tuple[str, ...]]]] = {
    "_pairs_kernel": _pairs,
    "_decode_kernel": _decoded(1),
    "_reconstruct_kernel": _decoded(2),  # for the error, and for its products with the same rows
    "_segments_kernel": _segments,
    "_one_kernel": _by_latent(("source", "scratch")),
    "_both_kernel": _by_latent(("x", "x_scratch"), ("error", "e_scratch")),
    "_scan_kernel": _scan,
    "_keep_kernel": _kept,
    "_nested_kernel": _decoded(2),
    "_reaching_kernel": _reaching,
}
