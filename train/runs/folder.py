"""The folder of a run: which run it holds, whether that is finished, and a lock against a second process."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ...common.errors import UsageError
from ...common.outputs import check_folder_output, take_lock
from ...store.durable import TEMPORARY_SUFFIX, write_bytes
from ...store.identity import differences
from .config import TrainConfig

RUN_FILE, CONFIG_FILE, LOCK_FILE = "run.json", "config.yaml", ".lock"
FORMAT_VERSION = 1
FORMER = [("include_diagonal", False)]  # settings of version 0.1 with the value that is now the only one
MAY_CHANGE = frozenset({"progress"})  # settings of config.log that do not change what a run makes


@contextmanager
def claim(out: Path, config: TrainConfig, cache_fingerprint: str) -> Iterator[bool]:
    """Lock ``out`` for a run that is new or has the same config and cache; yield whether it is finished.

    Raises:
        UsageError: another process uses the folder, or it holds another run (the message lists what differs)
            or something else.
    """
    identity = {"config": _settings(config), "cache": {"fingerprint": cache_fingerprint}}
    check_folder_output(out)
    _check(out, identity)
    out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out / LOCK_FILE, out, "give another --out")
    try:
        found = _check(out, identity)
        if found is None:
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            write_bytes(out / CONFIG_FILE, text.encode("utf-8"))
            _write(out, identity, finished=False)
        yield bool(found and found["finished"])
    finally:
        lock.release()


def mark_finished(out: Path) -> None:
    """Record that the run in ``out`` is finished."""
    run = json.loads((out / RUN_FILE).read_text("utf-8"))
    _write(out, {"config": run["config"], "cache": run["cache"]}, finished=True)


def _check(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """What run.json says; None for a folder that is absent or as good as empty."""
    if (out / RUN_FILE).is_file():
        found: dict[str, Any] = json.loads((out / RUN_FILE).read_text("utf-8"))
        if found["format_version"] != FORMAT_VERSION:
            raise UsageError(f"{out} was made by another version of saecache; give another --out")
        different = differences(
            _by_name({"config": found["config"], "cache": found["cache"]}), _by_name(identity)
        )
        if different:
            listed = "\n".join(f"  - {line}" for line in different)
            raise UsageError(f"{out} holds another run; give another --out, or the same settings:\n{listed}")
        return found
    ours = {LOCK_FILE, CONFIG_FILE, CONFIG_FILE + TEMPORARY_SUFFIX, RUN_FILE + TEMPORARY_SUFFIX}
    foreign = sorted(p.name for p in out.iterdir() if p.name not in ours) if out.exists() else []
    if foreign:
        raise UsageError(
            f"{out} is not empty and holds no training run (found {foreign[0]}); give another --out"
        )
    return None


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


def _settings(config: TrainConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json")
    settings["log"] = {key: value for key, value in settings["log"].items() if key not in MAY_CHANGE}
    return settings
