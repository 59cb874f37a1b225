"""What ``saecache export`` says of the rows that an SAE takes, for which the files have no words."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.errors import UsageError
from ...store.normalization import Normalizer
from ...store.untrusted_files import read_object

REPORT_FILE = "saecache-export.json"


def exported_normalizer(notes: Any, folder: Path, d_model: int) -> Normalizer | None:
    """The normalization of the rows of an SAE that was exported with ``--normalized-input``; else None.

    Args:
        notes: what the export wrote into the library's config, if that has room for it. Else the file
            ``saecache-export.json`` in ``folder`` is read.

    Raises:
        UsageError: the notes cannot be read.
    """
    path = folder / REPORT_FILE
    if not isinstance(notes, Mapping):
        try:
            notes = read_object(path, "remove it if the SAE takes raw rows, or export again")
        except FileNotFoundError:
            return None
    if notes.get("rows") != "normalized":
        return None
    try:
        normalizer = Normalizer.from_dict(notes["cfg"]["normalization"])
    except (KeyError, TypeError, ValueError, OverflowError, UsageError) as error:
        raise UsageError(
            f"{folder}: its export says that it takes normalized rows, but not which ({error!r:.80}): export "
            "it again"
        ) from None
    if normalizer.d_model != d_model:
        raise UsageError(
            f"{folder}: its export is of rows of width {normalizer.d_model}, and it has {d_model}"
        )
    return normalizer
