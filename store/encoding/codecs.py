"""Compression of inner chunks, by codecs of Zarr v3: ``zstd`` and ``blosc``.

The settings are those of the codec in the array's metadata, so that any Zarr reader decodes the chunks.
numcodecs compresses and decompresses, as it does for zarr-python.
"""

import struct
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...common.frozen import FrozenModel

_BLOSC_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}


class _Codec(FrozenModel, ABC):
    @abstractmethod
    def metadata(self, itemsize: int) -> dict[str, Any]:
        """The codec in the array's metadata; ``itemsize`` is that of the array."""

    @abstractmethod
    def encode(self, chunk: NDArray[Any]) -> bytes:
        """A C-contiguous chunk, compressed."""

    @abstractmethod
    def decode(self, stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Fill all of ``out`` from compressed bytes, which may come from anybody.

        Raises:
            ValueError: they are damaged, or are not exactly ``out`` compressed.
        """


class ZstdCodec(_Codec):
    """Zstandard compresses well and is quick to read."""

    kind: Literal["zstd"] = "zstd"
    level: int = Field(default=3, ge=1, le=22, description="higher is smaller and slower to write")

    def metadata(self, itemsize: int) -> dict[str, Any]:
        return {"name": "zstd", "configuration": {"level": self.level, "checksum": False}}

    def encode(self, chunk: NDArray[Any]) -> bytes:
        from numcodecs import zstd

        return bytes(zstd.compress(chunk, self.level))

    def decode(self, stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        import zstandard
        from numcodecs import zstd

        try:  # a frame names the size of its content: nothing of another size is decoded
            size = zstandard.frame_content_size(stored.data)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from None
        if size != out.nbytes:
            raise ValueError(f"a frame of {size} bytes, expected {out.nbytes}")
        try:
            zstd.decompress(stored, out)
        except RuntimeError as error:
            raise ValueError(str(error)) from None


class BloscCodec(_Codec):
    """Blosc groups the first bytes of all numbers, then the second bytes, before it compresses."""

    kind: Literal["blosc"] = "blosc"
    cname: Literal["lz4", "lz4hc", "zstd", "zlib", "blosclz"] = "zstd"
    level: int = Field(default=3, ge=1, le=9, description="higher is smaller and slower to write")
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"] = "shuffle"

    def metadata(self, itemsize: int) -> dict[str, Any]:
        settings = {"cname": self.cname, "clevel": self.level, "shuffle": self.shuffle}
        return {"name": "blosc", "configuration": {"typesize": itemsize, **settings, "blocksize": 0}}

    def encode(self, chunk: NDArray[Any]) -> bytes:
        from numcodecs import blosc

        shuffle = _BLOSC_SHUFFLE[self.shuffle]
        typesize = chunk.dtype.itemsize
        flat = chunk.reshape(-1)
        return bytes(blosc.compress(flat, self.cname.encode(), self.level, shuffle, 0, typesize))

    def decode(self, stored: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        from numcodecs import blosc

        if len(stored) < 16:
            raise ValueError("too short for a blosc header")
        size, _, compressed = struct.unpack("<3I", stored[4:16].tobytes())
        if (size, compressed) != (out.nbytes, len(stored)):
            raise ValueError(
                f"a blosc header of {size} bytes in {compressed}, expected {out.nbytes} in {len(stored)}"
            )
        try:
            blosc.decompress(stored, out)
        except RuntimeError as error:
            raise ValueError(str(error)) from None


Codec = Annotated[ZstdCodec | BloscCodec, Field(discriminator="kind")]


def max_encoded_bytes(chunk_bytes: int) -> int:
    """The most bytes that any codec makes of a chunk, whatever the chunk holds."""
    return chunk_bytes + chunk_bytes // 64 + 1024


def encode_ahead(
    codec: ZstdCodec | BloscCodec, chunks: Iterable[NDArray[Any]], threads: Executor, ahead: int
) -> Iterator[NDArray[np.uint8]]:
    """Compress ``chunks`` in order, ``ahead`` of them at the same time.

    A chunk may be overwritten once ``ahead`` more were consumed.
    """
    under_way: deque[Future[bytes]] = deque()
    for chunk in chunks:
        under_way.append(threads.submit(codec.encode, chunk))
        if len(under_way) == ahead:
            yield np.frombuffer(under_way.popleft().result(), np.uint8)
    while under_way:
        yield np.frombuffer(under_way.popleft().result(), np.uint8)
