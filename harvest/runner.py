"""``saecache.harvest``: the entry. It says at once that something happens; torch is imported after that."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.validation import validate
from .config import HarvestConfig

if TYPE_CHECKING:
    from .job.phases import HarvestResult


def run(
    config: HarvestConfig | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    extend: str | Path | None = None,
    scratch: Path | None = None,
    force: bool = False,
) -> "HarvestResult":
    """Harvest into ``out``, a folder (default: one of its own below ``caches/``) or a URL as ``s3://...``.

    The team's locations (``config.team`` and SAECACHE_TEAM) are asked first: a finished cache of the same
    identity is used where it is, unless ``force``. For a URL, rows are kept in the folder ``scratch`` until
    all are read, and finished shards are uploaded and removed there, the manifest last.

    An unfinished harvest of the same identity is continued: the cache is the same, byte for byte. A finished
    one is left as it is. ``extend`` is a finished cache of fewer tokens of the same stream: its rows are
    copied, and only the others go through the model. It stays as it is, and the new cache is the same, byte
    for byte, as without it.

    Raises:
        UsageError: a harvest that is impossible as configured, found before anything is written.
        BadActivationError: NaN, Inf or overflow in the activations.
        SaecacheError: the run cannot go on; what was done is saved.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; what was done is saved.
    """
    config = validate(HarvestConfig, config, "config")
    print(f"harvest: checking model {config.model.name}, text and output", file=sys.stderr, flush=True)
    from .job.phases import harvest

    return harvest(config, out, extend=extend, scratch=scratch, force=force)
