"""The folder of a run: which run it holds, whether that is finished, and a lock against a second process."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import UsageError
from ...common.frozen import FrozenModel
from ...common.outputs import check_folder_output, take_lock
from ...common.validation import validate
from ...store.disk_space import check_room
from ...store.durable import TEMPORARY_SUFFIX, write_bytes
from ...store.identity import differences
from ...store.reading.reader import ActivationCache
from ...store.untrusted_files import read_object
from ...store.untrusted_json import check_writes_stay
from ..run_files import LOCK_FILE, METRICS_FILE, RECIPE_FILE, RUN_FILE
from ..sae import SAE_FOLDER
from .checkpoint import FAILURE_FILE
from .checkpoint import FOLDER as CHECKPOINTS_FOLDER
from .config import TrainConfig

FORMAT_VERSION = 1
# Settings with the value that says what a run did whose version did not have them, or no longer has them.
FORMER: list[tuple[str, bool | str | dict[str, str] | None]] = [
    ("include_diagonal", False),
    ("counted_share", None),
    ("without_dead", False),
    ("init", None),
    ("target", None),
    ("crosscoder", False),
    ("beside", {}),
    ("decoder", "directions"),
]
MAY_CHANGE = frozenset({"progress"})  # settings of config.log that do not change what a run makes
MAX_LINES, MAX_SHOWN = 20, 300  # differences that a message lists, and characters of each
FIX = "put the file back, or give another --out"
PLACES = (SAE_FOLDER, CHECKPOINTS_FOLDER, FAILURE_FILE)  # in the folder of a variant


class RunRecord(FrozenModel):
    """The content of ``run.json``."""

    format_version: int
    finished: bool
    config: dict[str, Any]
    cache: dict[str, Any]


@contextmanager
def claim(
    out: Path,
    config: TrainConfig,
    cache: ActivationCache,
    names: Collection[str],
    needed_bytes: int,
    init: Mapping[str, Any] | None = None,
    row_groups: int = 1,
) -> Iterator[bool]:
    """Lock ``out`` for a run that is new or has the same config and cache; yield whether it is finished.

    ``names`` are those of the folders of its SAEs, which take ``needed_bytes`` at most. ``init`` identifies
    the SAE that the run starts from: its path may change, its weights may not; so do those of the caches
    beside ``cache`` and their fingerprints. ``row_groups`` is the number of processes that share the rows of
    a batch, on which the last bits depend.

    Raises:
        UsageError: another process uses the folder, it holds another run (the message lists what differs) or
            something else, or the disk has too little room for the run.
    """
    beside = {name: other.fingerprint for name, other in cache.beside.items()}
    settings = _settings(config) | {"init": None if init is None else dict(init), "beside": beside}
    settings |= parallel_identity(row_groups)
    identity = {"config": settings, "cache": {"fingerprint": cache.fingerprint}}
    check_folder_output(out)
    before = _check(out, names, identity)
    if not (before and before.finished):
        _check_room(out, names, needed_bytes, config)
    out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out / LOCK_FILE, out, "give another --out")
    try:
        found = _check(out, names, identity)
        if found is None:
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            write_bytes(out / RECIPE_FILE, text.encode("utf-8"))
            _write(out, identity, finished=False)
        yield bool(found and found.finished)
    finally:
        lock.release()


def mark_finished(out: Path) -> None:
    """Record that the run in ``out`` is finished."""
    run = _read(out / RUN_FILE)
    _write(out, {"config": run.config, "cache": run.cache}, finished=True)


def _read(path: Path) -> RunRecord:
    found = read_object(path, FIX)
    if found.get("format_version") != FORMAT_VERSION:
        raise UsageError(f"{path.parent} was made by another version of saecache; give another --out")
    return validate(RunRecord, found, f"{path} ({FIX})")


def _check(out: Path, names: Collection[str], identity: Mapping[str, Any]) -> RunRecord | None:
    """What run.json says; None for a folder that is absent or as good as empty."""
    files = {LOCK_FILE, RECIPE_FILE, RECIPE_FILE + TEMPORARY_SUFFIX, RUN_FILE, RUN_FILE + TEMPORARY_SUFFIX}
    places = (f"{name}/{place}" for name in names for place in PLACES)
    check_writes_stay(out, [*sorted(files), METRICS_FILE, *places], "give another --out")
    if (out / RUN_FILE).exists():
        found = _read(out / RUN_FILE)
        before, now = ({**each, "checkpoint": None} for each in (found.config, identity["config"]))
        different = differences(
            _by_name({"config": before, "cache": found.cache}), _by_name({**identity, "config": now})
        )  # how often a checkpoint is saved changes no SAE
        if different:
            shown = [f"{line:.{MAX_SHOWN}}" for line in different[:MAX_LINES]]
            listed = "\n".join(
                f"  - {line}" for line in [*shown, *["and more"] * (len(different) > MAX_LINES)]
            )
            raise UsageError(f"{out} holds another run; give another --out, or the same settings:\n{listed}")
        return found
    foreign = sorted(p.name for p in out.iterdir() if p.name not in files) if out.exists() else []
    if foreign:
        raise UsageError(
            f"{out} is not empty and holds no training run (found {foreign[0]}); give another --out"
        )
    return None


def _check_room(out: Path, names: Collection[str], needed_bytes: int, config: TrainConfig) -> None:
    """Refuse a run whose checkpoints would fill the disk; those that are there already have their room."""
    places = [out / name / place for name in names for place in PLACES]
    there = sum(path.stat().st_size for place in places for path in place.rglob("*") if path.is_file())
    keep, saes = config.checkpoint.keep, f"{len(names)} SAE{'s' * (len(names) > 1)}"
    check_room(
        out,
        needed_bytes - there,
        needed=f"the run needs {{}} more for its checkpoints (of {saes}, {keep} kept and one being saved)",
        otherwise="lower checkpoint.keep, train fewer SAEs at a time, or give another --out",
    )


def _write(out: Path, identity: Mapping[str, Any], *, finished: bool) -> None:
    run = {"format_version": FORMAT_VERSION, "finished": finished, **identity}
    write_bytes(out / RUN_FILE, (json.dumps(run, indent=2) + "\n").encode("utf-8"))


def _by_name(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Turn lists into mappings, so that a difference between two variants is named by its setting."""

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: named(item) for key, item in value.items() if (key, item) not in FORMER}
        return {str(i): named(item) for i, item in enumerate(value)} if isinstance(value, list) else value

    return {key: named(value) for key, value in identity.items()}


def parallel_identity(row_groups: int) -> dict[str, Any]:
    """What is part of a run's identity of how processes share it; nothing unless they share rows."""
    return {} if row_groups == 1 else {"parallel": {"rows": row_groups}}


def _settings(config: TrainConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json")
    del settings["parallel"]  # the same run continues with another number of processes, but for rows
    settings["log"] = {key: value for key, value in settings["log"].items() if key not in MAY_CHANGE}
    return settings
