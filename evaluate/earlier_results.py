"""Keeps what a judge has said of SAEs when their results are written anew: it was paid for.

It stays where it still belongs to the SAE. Where it does not, the file that holds it is copied first.
"""

import re
from itertools import count
from pathlib import Path

from ..common.errors import UsageError
from ..store.durable import write_bytes
from .definitions import JUDGE_DEFINITIONS
from .results import Interpretation, Results, SaeResult, read_results

_SAME = ("kind", "hook", "target", "d_model", "num_latents", "k", "normalization")


def keep_judged(measured: Results, path: Path) -> tuple[Results, list[str]]:
    """Take the interpretations of the results in ``path`` over into ``measured``, which will replace them.

    An interpretation is taken over if the SAE is the same (its weights, or in results that do not hold their
    hash, its whole config) and the cache is, too. If any cannot be, or the file cannot be read, the file is
    copied to another name beside it, and a warning says which.

    Returns:
        The results to write, and what to say to the user.
    """
    if not path.exists():
        return measured, []
    try:
        former = read_results(path)
    except UsageError as error:
        aside = _set_aside(path, "unreadable")
        return measured, [f"{error}. It was copied to {aside.name}, so that nothing in it is lost"]
    judged = {sae.name: sae for sae in former.saes if sae.interpretation is not None}
    if not judged:
        return measured, []
    same_cache = (former.cache.fingerprint, former.cache.beside) == (
        measured.cache.fingerprint,
        measured.cache.beside,
    )
    kept = {
        sae.name: judged[sae.name].interpretation
        for sae in measured.saes
        if same_cache and sae.name in judged and is_same_sae(judged[sae.name], sae)
    }
    notes = []
    if kept:
        notes.append(f"kept what the judge said of {', '.join(kept)}")
        measured = measured.model_copy(
            update={
                "definitions": measured.definitions | JUDGE_DEFINITIONS,
                "saes": [
                    sae.model_copy(update={"interpretation": kept.get(sae.name)}) for sae in measured.saes
                ],
                "uniqueness": [pair for pair in former.uniqueness if {pair.a, pair.b} <= kept.keys()],
            }
        )
    lost = [name for name in judged if name not in kept]
    if lost:
        aside = _set_aside_judged(path, former)
        names = {sae.name for sae in measured.saes}
        reasons = [f"{name} ({_why_not(name, names, same_cache=same_cache)})" for name in lost]
        warning = (
            f"What the judge said of {', '.join(reasons)} is not in these results. It stays in {aside.name}, "
            "and the judge's answers stay stored."
        )
        notes.append(warning)
        measured = measured.model_copy(update={"warnings": [*measured.warnings, warning]})
    return measured, notes


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
    aside = _set_aside_judged(path, former)
    return (
        f"these settings leave out {', '.join(lost)}, which the results held: the former file was copied to "
        f"{aside.name}"
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
    if former.weights_sha256 is None or now.weights_sha256 is None:
        return former.config == now.config
    return former.weights_sha256 == now.weights_sha256


def _why_not(name: str, measured: set[str], *, same_cache: bool) -> str:
    if not same_cache:
        return "it was on another cache"
    return "the SAE has changed" if name in measured else "it was not measured this time"


def _set_aside_judged(path: Path, former: Results) -> Path:
    return _set_aside(path, "judged-" + re.sub(r"[^0-9T]", "", former.created[:19]))


def _set_aside(path: Path, label: str) -> Path:
    """Copy the file to a name beside it that no file has yet; the file itself is replaced later."""
    numbers = ("" if number == 0 else f"-{number}" for number in count())
    names = (path.with_name(f"{path.stem}.{label}{number}{path.suffix}") for number in numbers)
    aside = next(name for name in names if not name.exists())
    write_bytes(aside, path.read_bytes())
    return aside
