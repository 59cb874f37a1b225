"""Hostile files, made from good ones by a seed, and the bounds within which they must be refused or read.

``mutated`` and ``damaged_json`` change bytes and values; ``replace_with`` puts something else in the place
of a file.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from saecache.common.errors import SaecacheError

from .killing import DEADLINE_SECONDS

CASES = 2000 if os.environ.get("SAECACHE_LONG_TESTS") else 30
MOST_CPU_SECONDS, MOST_BYTES, MOST_SECONDS = 2.0, 200 << 20, int(DEADLINE_SECONDS)

_RAW = {"@huge@": "1" + "0" * 5000, "@beyond@": "1e999", "@nan@": "NaN", "@half@": '"\\ud800"'}
_VALUES: list[Any] = [
    None, True, -1, 0, 1, 0.5, 2**31, 2**63, 10**30, -(10**30), 1e308, 1e-320, "", "x", "\0", "\x1b[2J",
    "1e9", "../../..", "x" * 1_000_000, [], {}, [0], {"kind": "topk"}, [[]] * 50_000, [{"a": 1}] * 1000,
    list(range(100_000)), {str(i): i for i in range(50_000)}, *_RAW,
]  # fmt: skip


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


_VALUES += [deep(40), deep(100), deep(900)]


class TookLongError(AssertionError):
    """More CPU time than one hostile file may take."""


@contextmanager
def bounded() -> Iterator[None]:
    """Bounds for the work on one hostile file: CPU time, the peak of memory, and waiting for ever."""

    def waits(number: int, frame: Any) -> None:
        raise AssertionError("the file is waited for without end")

    Path("/proc/self/clear_refs").write_text("5")  # forgets the former peak of the memory
    before = _status("VmRSS")
    former = signal.signal(signal.SIGALRM, waits)
    signal.alarm(MOST_SECONDS)
    started = time.process_time()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)
    assert _status("VmHWM") - before < MOST_BYTES
    if (seconds := time.process_time() - started) >= MOST_CPU_SECONDS:
        raise TookLongError(f"{seconds:.1f} s of CPU time, expected less than {MOST_CPU_SECONDS}")


def right_or_refused(call: Callable[[], Any]) -> Any:
    """The result of ``call`` within the bounds; None if it refuses with one of our errors, in words.

    What took too long is tried once more: threads that wait for a busy processor use CPU time too, and so
    does what a library does at its first use.
    """
    try:
        return _right_or_refused(call)
    except TookLongError:
        return _right_or_refused(call)


def _right_or_refused(call: Callable[[], Any]) -> Any:
    with bounded():
        try:
            return call()
        except SaecacheError as error:
            assert len(str(error)) < 10_000
            return None


def mutated(content: bytes, seed: int) -> bytes:
    """``content`` with one or several changes of bytes."""
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(9):
            case 0 | 1 | 2 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 3:
                del data[at:]
            case 4:
                data[at:at] = rng.choice((b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"{", b"[", b'"', b"\n"))
            case 5:
                data += rng.choice((b"\0", rng.randbytes(64), b" ", b"\0" * (1 << 20)))
            case 6:
                data[at : at + 8] = rng.choice((b"\xff" * 8, b"\0" * 8, rng.randbytes(8), b"99999999"))
            case 7:
                data[at:at] = rng.choice((b"[", b'{"a":', b"- ", b"{a: ")) * 100_000
            case _:
                length = rng.randrange(1, 64)
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 1000))
    return bytes(data[: 3 << 20])


def damaged_json(content: bytes, seed: int) -> bytes:
    """A JSON document with one value of it replaced, removed, renamed or added."""
    rng = random.Random(seed)
    document = json.loads(content)
    holders = [one for one in _walk(document) if one]
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    key, value = rng.choice(keys), rng.choice(_VALUES)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder["surprise"] = value
        case 2 if isinstance(holder, dict):
            holder[f"{key}_"] = holder.pop(key)
        case 3:
            document = value
        case _:
            holder[key] = value
    text = json.dumps(document)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def _walk(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _walk(inner)


def _folder(path: Path) -> None:
    path.mkdir()


def _linked(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _link_out(path: Path) -> None:
    outside = path.absolute().parent.parent / f"outside of {path.name}"
    outside.write_bytes(b"precious")
    path.symlink_to(outside)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"a": "')
        file.truncate(2 << 30)


IN_ITS_PLACE: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "a folder": _folder,
    "a FIFO": os.mkfifo,
    "a device": _linked("/dev/zero"),
    "a link to nothing": _linked("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link out": _link_out,
    "2 GiB": _sparse,
    "an empty file": lambda path: path.write_bytes(b""),
}
in_its_place = pytest.mark.parametrize("what", IN_ITS_PLACE)


def replace_with(what: str, path: Path) -> None:
    """Put something else where ``path`` was, which may be a file or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    IN_ITS_PLACE[what](path)


def check_nothing_outside(path: Path) -> None:
    """A file that a link pointed to is as it was."""
    outside = path.absolute().parent.parent / f"outside of {path.name}"
    assert not outside.exists() or outside.read_bytes() == b"precious"


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key + ":"))
