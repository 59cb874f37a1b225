"""A folder of latents on disk: ``latents.safetensors`` with the arrays, and ``latents.json``, written last.

README.md in this folder is the specification.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

import numpy as np
from pydantic import ValidationError

from ...common.errors import UsageError
from ...common.outputs import check_file_output
from ...store.durable import make_folder, write_bytes
from ...store.untrusted_files import open_file, read_object
from ...store.untrusted_json import check_writes_stay, describe_invalid
from .arrays import read_arrays, write_arrays
from .table import ARRAYS, EMPTY, FORMAT_VERSION, NUM_FIFTHS, TOP, Latents, LatentsInfo

ARRAYS_FILE, INFO_FILE = "latents.safetensors", "latents.json"
_AGAIN = "measure again with 'saecache evaluate'"


def latents_folder(results: Path, name: str) -> Path:
    """The folder of an SAE's latents beside a results file: ``results.latents/<name>``.

    Characters that may not be in a file's name are written as %xx.
    """
    return results.with_name(f"{results.stem}.latents") / quote(name, safe="").replace(".", "%2E")


def check_latents_output(results: Path, names: Iterable[str]) -> None:
    """Make sure that the folders of latents of these SAEs can be written beside a results file.

    Raises:
        UsageError: a link leads to another place, something else stands there, or nothing may be written.
    """
    for name in names:
        folder = latents_folder(results, name)
        check_writes_stay(results.parent, [f"{folder.parent.name}/{folder.name}"], "give another --out")
        for file in (INFO_FILE, ARRAYS_FILE):
            check_file_output(folder / file)


def write_latents(latents: Latents, folder: Path) -> None:
    """Write the folder; one that is there is replaced. Equal latents give equal bytes."""
    make_folder(folder)
    (folder / INFO_FILE).unlink(missing_ok=True)
    path = folder / ARRAYS_FILE
    sha256 = write_arrays(path, latents.arrays())
    info = latents.info.model_copy(update={"sha256": sha256, "num_bytes": path.stat().st_size})
    write_bytes(folder / INFO_FILE, (info.model_dump_json(indent=1) + "\n").encode("utf-8"))


def read_latents(folder: Path) -> Latents:
    """Open a folder of latents. The arrays are mapped, and read from the disk when they are looked at.

    All that can make a reader fail or lie is checked first: the checksum, types and shapes, and that
    every number that points into an array does.

    Raises:
        UsageError: there is no such folder, it is damaged, or of a later version.
    """
    try:
        return _read(folder)
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} is no folder of latents: there is no {error.filename}; {_AGAIN}"
        ) from None


def _read(folder: Path) -> Latents:
    values = read_object(folder / INFO_FILE, _AGAIN)
    try:
        info = LatentsInfo.model_validate(values)
    except ValidationError as error:
        _refuse(folder, f"{INFO_FILE}: {describe_invalid(error)}")
    if info.format_version != FORMAT_VERSION:
        raise UsageError(
            f"{folder} has format version {info.format_version}, expected {FORMAT_VERSION}; {_AGAIN}"
        )
    if (
        not 0 < info.num_latents < 1 << 40
        or not 0 < info.num_rows < 1 << 48
        or not 0 < info.context < 1 << 40
        or not 0 <= info.radius < 1 << 40
    ):
        _refuse(folder, f"{INFO_FILE}: its numbers of latents, rows and positions, or its radius, cannot be")
    path = folder / ARRAYS_FILE
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size != info.num_bytes:
            _refuse(folder, f"{ARRAYS_FILE} has {size} bytes, expected {info.num_bytes}")
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != info.sha256:
        _refuse(folder, f"{ARRAYS_FILE} has sha256 {got}, expected {info.sha256!s:.64}")
    latents = Latents(info=info, **read_arrays(path, ARRAYS, {"F": info.num_latents}))
    _check(latents, folder)
    return latents


def _check(latents: Latents, folder: Path) -> None:
    """Make sure that what points into arrays does, so that nothing later has to look."""
    num_latents, num_tokens = latents.num_latents, len(latents.text)
    for name, entries in (
        ("context_ptr", latents.context_token),
        ("activation_ptr", latents.activation_value),
        ("passage_ptr", latents.text),
        ("vocabulary_ptr", latents.vocabulary_utf8),
    ):
        ptr = getattr(latents, name)
        if ptr[0] != 0 or ptr[-1] != len(entries) or (ptr[1:] < ptr[:-1]).any():  # differences may overflow
            _refuse(folder, f"{name} does not cut its {len(entries)} entries into pieces")
    for name, low, high in (
        ("context_token", 0, num_tokens),
        ("context_fifth", TOP, NUM_FIFTHS),
        ("nearest", 0, num_latents),
        ("coactive", EMPTY, num_latents),
        ("fires", 0, latents.info.num_rows + 1),
        ("histogram", 0, latents.info.num_rows + 1),
        ("text_measured", 0, 2),
        ("passage_sequence", 0, 1 << 48),
        ("passage_position", 0, latents.info.context),
        ("passage_document", -1, 1 << 31),
    ):
        _check_range(latents, name, low, high, folder)
    for name, array in latents.arrays().items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            _refuse(folder, f"{name} holds numbers that are not finite")
    if (latents.vocabulary[1:] <= latents.vocabulary[:-1]).any():
        _refuse(folder, "vocabulary is not ascending")
    if (latents.largest < 0).any() or (latents.histogram_end < latents.largest).any():
        _refuse(folder, "largest is not between 0 and histogram_end")
    for name in ("text", "promoted", "suppressed"):
        ids = getattr(latents, name)
        if ids is not None and not np.isin(ids, latents.vocabulary).all():
            _refuse(folder, f"{name} has token ids that vocabulary does not have")
    logits = [latents.promoted, latents.promoted_effect, latents.suppressed, latents.suppressed_effect]
    if any(array is None for array in logits) and any(array is not None for array in logits):
        _refuse(folder, "it has a part of the logit effects")
    token = latents.context_token.astype(np.int64).repeat(np.diff(latents.activation_ptr))
    passage = np.searchsorted(latents.passage_ptr, token, side="right") - 1
    place = token + latents.activation_distance
    if (place < latents.passage_ptr[passage]).any() or (place >= latents.passage_ptr[passage + 1]).any():
        _refuse(folder, "activation_distance leaves the passage of its context")
    radius = latents.info.radius
    _check_range(latents, "activation_distance", -radius, radius + 1, folder)


def _check_range(latents: Latents, name: str, low: int, high: int, folder: Path) -> None:
    array = getattr(latents, name)
    if array.size and not (low <= int(array.min()) and int(array.max()) < high):
        _refuse(folder, f"{name} has values outside {low} to {high - 1}")


def _refuse(folder: Path, reason: str) -> NoReturn:
    raise UsageError(f"{folder} is damaged: {reason}; {_AGAIN}")
