"""A folder of a language model from anybody: a look at its files before libraries read them, and the border
for what these libraries raise."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..common.errors import SaecacheError, UsageError
from ..common.regular_files import open_regular, read_regular
from .untrusted_json import check_depth

SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
MOST_JSON_BYTES = 1 << 24
_MOST_SMALL_BYTES = 1 << 28  # of a tokenizer; those of today have up to 40 MB
_LONGEST_WORDS = 1000


def check_model_folder(folder: Path, name: str) -> None:
    """Look at the files beside the weights before libraries read them, who trust their sizes.

    Raises:
        UsageError: one is no regular file or larger than any, or the configuration is no JSON object.
    """
    for pattern in SMALL_FILES:
        for path in sorted(folder.glob(pattern)):
            with files_explained(f"{path} cannot be used"), open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > _MOST_SMALL_BYTES:
                    raise ValueError(f"more than {_MOST_SMALL_BYTES} bytes")
    for file_name in ("config.json", "generation_config.json"):
        path = folder / file_name
        if path.exists():
            with files_explained(f"model {name!r}: its {file_name} cannot be used", f": {path}"):
                value = json.loads(read_regular(path, MOST_JSON_BYTES))  # Infinity stands in some
                check_depth(value, file_name)
                if not isinstance(value, dict):
                    raise ValueError("expected a JSON object")


@contextmanager
def files_explained(problem: str, advice: str = "") -> Iterator[None]:
    """The one border for exceptions of libraries that read a model's files: each becomes a UsageError.

    Which exceptions they raise for which damage is nowhere said, and a panic of the Rust ones is none of
    ``Exception``.

    Args:
        problem: what cannot be done, with the place of the file.
        advice: comes after the library's own words.
    """
    try:
        yield
    except (SaecacheError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        words = f"{type(error).__name__}: {error}"
        raise UsageError(f"{problem} ({words[:_LONGEST_WORDS]}){advice}") from None
