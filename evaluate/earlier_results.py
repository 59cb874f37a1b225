"""Keeps what earlier results hold when they are written anew: it was paid for, or took long.

What a judge has said stays where it still belongs to the SAE. Where it does not, and where the new results
lack a measurement that the former ones hold, the former file is copied first.
"""

import os
import re
from itertools import count
from pathlib import Path

from ..common.errors import UsageError
from ..store.durable import write_bytes
from ..store.untrusted_files import read_file
from .definitions import JUDGE_DEFINITIONS
from .results import Interpretation, Results, SaeResult, read_results
from .results.file import MAX_RESULTS_BYTES

_SAME = ("kind", "hook", "target", "d_model", "num_latents", "k", "normalization")


def keep_earlier(measured: Results, path: Path) -> tuple[Results, list[str]]:
    """Keep what the results in ``path`` hold and ``measured``, which will replace them, lack.

    An interpretation is taken over if the SAE is the same (its weights, or in results that do not hold their
    hash, its whole config) and the cache is, too. If any cannot be, if the former results hold SAEs or
    measurements that the new ones lack, it is copied to another name beside it, and a message says what is
    missing. What cannot be read as results, and may be anything, is moved there.

    Returns:
        The results to write, and what to say to the user.
    """
    if not path.exists():
        return measured, []
    try:
        former = read_results(path)
    except UsageError as error:
        aside = _find_aside(path, "unreadable")
        path.rename(aside)
        return measured, [f"{error}. It was moved to {aside.name}, so that nothing in it is lost"]
    measured, notes, unkept = _take_interpretations(former, measured)
    lacking = _measured_less(former, measured)
    if not unkept and not lacking:
        return measured, notes
    aside = _set_aside_dated(path, former, "judged" if unkept else "measured")
    if unkept:
        warning = (
            f"What the judge said of {', '.join(unkept):.2000} is not in these results. It stays in "
            f"{aside.name}, and the judge's answers stay stored."
        )
        notes.append(warning)
        measured = measured.model_copy(update={"warnings": [*measured.warnings, warning]})
    if lacking:
        notes.append(
            f"{path.name} held {', '.join(lacking):.2000}, which were not measured this time: the former "
            f"file was copied to {aside.name}"
        )
    return measured, notes


def _take_interpretations(former: Results, measured: Results) -> tuple[Results, list[str], list[str]]:
    """The results with the interpretations that still belong to their SAEs, and what to say.

    The last list names the SAEs whose interpretation could not be kept, each with the reason.
    """
    judged = {sae.name: sae for sae in former.saes if sae.interpretation is not None}
    same_cache = (former.cache.fingerprint, former.cache.beside) == (
        measured.cache.fingerprint,
        measured.cache.beside,
    )
    kept = {
        sae.name: judged[sae.name].interpretation
        for sae in measured.saes
        if same_cache and sae.name in judged and is_same_sae(judged[sae.name], sae)
    }
    names = {sae.name for sae in measured.saes}
    unkept = [
        f"{name} ({_why_not(name, names, same_cache=same_cache)})" for name in judged if name not in kept
    ]
    if not kept:
        return measured, [], unkept
    taken = measured.model_copy(
        update={
            "definitions": measured.definitions | JUDGE_DEFINITIONS,
            "saes": [sae.model_copy(update={"interpretation": kept.get(sae.name)}) for sae in measured.saes],
            "uniqueness": [pair for pair in former.uniqueness if {pair.a, pair.b} <= kept.keys()],
        }
    )
    return taken, [f"kept what the judge said of {', '.join(kept):.2000}"], unkept


def _measured_less(former: Results, now: Results) -> list[str]:
    """What the former results hold and the new ones lack: whole SAEs, and measurements of the others."""
    after = {sae.name: sae for sae in now.saes}
    lacking: dict[str, list[str]] = {}
    for sae in former.saes:
        held = _measurements(sae)
        if sae.name not in after:
            lacking.setdefault("all figures", []).append(sae.name)
            continue
        for what in held - _measurements(after[sae.name]):
            lacking.setdefault(what, []).append(sae.name)
    return [f"{what} of {', '.join(names)}" for what, names in sorted(lacking.items())]


def _measurements(sae: SaeResult) -> set[str]:
    """The measurements that a result holds beside those that every evaluation makes."""
    models = [sae.language_model, *(hook.language_model for hook in sae.hooks)]
    held = {f"probing on {one.data}" for one in sae.probing}
    held |= {"CE and KL"} if any(model is not None for model in models) else set()
    return held | ({"absorption"} if sae.absorption is not None else set())


def copy_if_judged_less(former: Results, now: Results, path: Path) -> str | None:
    """Copy the results ``former`` in ``path`` if ``now``, which will replace them, lack what a judge said.

    That is so after an interpretation with other settings, which has fewer latents or other scores.

    Returns:
        What to say to the user; None where nothing is left out.
    """
    after = {sae.name: sae.interpretation for sae in now.saes}
    lost = [
        f"{part} of {sae.name}"
        for sae in former.saes
        if sae.interpretation is not None
        for part in _left_out(sae.interpretation, after[sae.name])
    ]
    pairs = {(pair.a, pair.b) for pair in now.uniqueness}
    lost += [f"unique latents of {pair.a}" for pair in former.uniqueness if (pair.a, pair.b) not in pairs]
    if not lost:
        return None
    aside = _set_aside_dated(path, former, "judged")
    return (
        f"these settings leave out {', '.join(lost):.2000}, which the results held: the former file was "
        f"copied to {aside.name}"
    )


def _left_out(former: Interpretation, now: Interpretation | None) -> list[str]:
    """The parts of an interpretation that another one lacks."""
    parts = ("detection", "fuzzing", "calibration")
    lost = [part for part in parts if getattr(former, part) is not None and getattr(now, part, None) is None]
    missing = {one.index for one in former.latents} - {one.index for one in (now.latents if now else [])}
    return [*lost, *([f"{len(missing)} explained latents"] if missing else [])]


def is_same_sae(former: SaeResult, now: SaeResult) -> bool:
    """Whether two results are of one SAE, with the same weights and the same rule."""
    if any(getattr(former, name) != getattr(now, name) for name in _SAME):
        return False
    same = former.is_of_weights(now.weights_sha256)
    return former.config == now.config if same is None else same


def _why_not(name: str, measured: set[str], *, same_cache: bool) -> str:
    if not same_cache:
        return "it was on another cache"
    return "the SAE has changed" if name in measured else "it was not measured this time"


def _set_aside_dated(path: Path, former: Results, label: str) -> Path:
    """Copy the file to a name beside it that no file has yet; the file itself is replaced later."""
    aside = _find_aside(path, f"{label}-" + re.sub(r"[^0-9T]", "", former.created[:19]))
    write_bytes(aside, read_file(path, MAX_RESULTS_BYTES))
    return aside


def _find_aside(path: Path, label: str) -> Path:
    """A name beside the file that no file has yet."""
    numbers = ("" if number == 0 else f"-{number}" for number in count())
    names = (path.with_name(f"{path.stem}.{label}{number}{path.suffix}") for number in numbers)
    return next(name for name in names if not os.path.lexists(name))
