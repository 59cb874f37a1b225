"""Files that come over the network are written as those of a local cache: in large blocks."""

import io
import random

import pytest

from saecache.store.remote.places.file_blocks import BlockWriter


class Written(io.BytesIO):
    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, block: object) -> int:
        part = bytes(memoryview(block)[:900])  # type: ignore[arg-type]  # as an unbuffered file may
        self.sizes.append(len(part))
        return super().write(part)


@pytest.mark.parametrize("total", [0, 1, 255, 256, 257, 10_000])
@pytest.mark.parametrize("block", [256, 3000])
def test_the_same_bytes_in_whole_blocks(total: int, block: int) -> None:
    content, file = random.Random(total).randbytes(total), Written()
    writer, choose, place = BlockWriter(file, block), random.Random(0), 0
    while place < total:
        step = choose.choice([1, 7, 100, 256, 700])
        writer.write(content[place : place + step])
        place += step
    assert len(file.getvalue()) == total - total % block, "only whole blocks so far"
    writer.flush()
    assert file.getvalue() == content
    assert len(file.sizes) <= (total // block + 1) * (block // 900 + 1)
