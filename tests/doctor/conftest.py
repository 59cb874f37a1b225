"""A small examination, and a backend that computes wrongly."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from saecache.train import backends
from saecache.train.backends import choice

SMALL = {  # a second or two of every section, on a busy core; how long it takes decides nothing
    "limit_seconds": "36000",
    "checks.operations": "[[9, 40, 12, 3]]",
    "checks.screen_widths": "[24]",
    "checks.training": "[32, 96, 16]",
    "cpu.latents": "[128]",
    "cpu.rows": "64",
    "cpu.width": "32",
    "cpu.k": "4",
    "cpu.rounds": "1",
    "cpu.cache_mib": "1",
    "cpu.tokens": "1000",
}
SECTIONS = (
    "machine", "devices", "storage", "operations", "kernels", "training", "moves", "steps", "kernel_times",
    "writer", "feed", "harvest", "peers",
)  # fmt: skip


def small_settings(**seconds: float) -> list[str]:
    """``--set`` options of a small examination; ``seconds`` are those of some sections; others have hours."""
    settings = SMALL | {f"seconds.{name}": str(seconds.get(name, 36000)) for name in SECTIONS}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


BROKEN = """
from saecache.train.backends.compiled.backend import *
from saecache.train.backends.compiled import backend as right

def decode(pairs, W, bias=None):
    return right.decode(pairs, W, bias) * 1.001

def adam_step(parameter, *arguments, **options):
    right.adam_step(parameter, *arguments, **options)
    parameter.mul_(1.001)

def largest_of_batch(source, total, hint):
    raise ArithmeticError("this kernel fails")
"""


@pytest.fixture
def broken_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a backend that is preferred on the CPU: two operations are wrong, and one fails."""
    folder = tmp_path / "backends" / "broken"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("PREFERENCE = 99\ndef serves(tensor): return True\n")
    (folder / "backend.py").write_text(BROKEN)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(folder.parent)])
    forget_backends()
    yield "broken"
    monkeypatch.undo()
    forget_backends()


def forget_backends() -> None:
    choice._backends.cache_clear()
    choice.load_backend.cache_clear()
    for name in [name for name in sys.modules if name.startswith("saecache.train.backends.broken")]:
        del sys.modules[name]
