"""Downloads ahead of a reader whose arrays may be those of several remote caches, or of folders."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from .mapped_shards import ShardFiles
from .sharded_array import ShardedArray


@contextmanager
def download_ahead(arrays: Iterable[ShardedArray], shards: Callable[[int], Sequence[int]]) -> Iterator[None]:
    """A context in which shards of ``arrays`` are downloaded in order, of those that are not in folders.

    Args:
        arrays: those of one cache are all cut alike.
        shards: the numbers of the shards in the order of need, from how many chunks each has.
    """
    by_cache: dict[int, tuple[ShardFiles, dict[str, ShardedArray]]] = {}
    for array in arrays:
        if array.files is not None:
            by_cache.setdefault(id(array.files), (array.files, {}))[1][array.spec.path] = array
    with ExitStack() as stack:
        for files, found in by_cache.values():
            specs = [array.spec for array in found.values()]
            numbers = shards(specs[0].chunks_per_shard)
            stack.enter_context(files.ahead([spec.shard_path(n) for n in numbers for spec in specs]))
        yield
