"""The formats of other libraries, one file each. Every file here is found; there is no list to edit.

A file's name is the word after ``--format``. Its ``FORMAT`` is an object of a subclass of
:class:`~..format.Format`.
"""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..format import Format


def format_names() -> list[str]:
    """The names of all formats, in alphabetical order. It imports none of them, and so no torch."""
    return [info.name for info in iter_modules(__path__)]


@cache
def load_formats() -> dict[str, "Format"]:
    """Import every format of this folder: name -> format, in the order of :func:`format_names`."""
    return {name: import_module(f".{name}", __name__).FORMAT for name in format_names()}
