"""Finds the SAEs in the folders that a user names, and checks that the cache is theirs."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import torch

from ..common.errors import UsageError
from ..common.lookups import is_file
from ..store import ActivationCache
from ..store.remote import is_url
from ..train import SAE, load_sae
from ..train.foreign.building import imported_from
from ..train.foreign.formats import find_format
from ..train.foreign.hook_names import same_activation
from ..train.loading import find_saes
from ..train.run_files import RESULTS_FILE
from ..train.sae import CONFIG_FILE, SAE_FOLDER
from ..train.sae_hooks import all_hooks


@dataclass(frozen=True, kw_only=True)
class Target:
    """One SAE to measure; ``name`` is unique among the targets.

    Attributes:
        sae_dir: its folder on this machine.
        url: where it was downloaded from; None if it was not.
    """

    name: str
    sae_dir: Path
    url: str | None = None

    @property
    def place(self) -> str:
        """Where it is, as the user named it: the URL, or the folder."""
        return self.url or str(self.sae_dir)

    def load(self, device: str | torch.device = "cpu") -> SAE:
        """The SAE, with its weights on ``device``; errors as :func:`load_sae`."""
        return load_sae(self.sae_dir, device)


Place = Path | str
"""An SAE folder, a run folder, or the URL of an SAE."""


def find_targets(places: Sequence[Place] | Sequence[Target]) -> list[Target]:
    """Find the SAEs in SAE folders, in run folders with ``<variant>/sae`` in them, and at URLs.

    If SAEs of two runs have the same name, they are called ``run/name``. Targets that were found before stay
    as they are.

    Raises:
        UsageError: a folder holds no SAE, or the same SAE is named twice.
    """
    if known := [place for place in places if isinstance(place, Target)]:
        return known
    found: list[tuple[Path, str | None]] = []
    for place in (place for place in places if not isinstance(place, Target)):
        url = str(place).rstrip("/") if is_url(place) else None
        found += [(sae_dir, url) for sae_dir in find_saes(place)]
    doubled = [str(path) for path, count in Counter(path.resolve() for path, _ in found).items() if count > 1]
    if doubled:
        raise UsageError(f"the same SAE is named twice: {', '.join(doubled)}")
    shown = [_shown_path(path, url) for path, url in found]
    short = [path.name for path in shown]
    names = [f"{path.parent.name}/{path.name}" if short.count(path.name) > 1 else path.name for path in shown]
    clashing = sorted(name for name, count in Counter(names).items() if count > 1)
    if clashing:
        raise UsageError(f"several SAEs would be called {', '.join(clashing)}: rename a run folder")
    return [Target(name=name, sae_dir=path, url=url) for name, (path, url) in zip(names, found, strict=True)]


def find_targets_of(
    places: Sequence[Place] | Sequence[Target], cache: ActivationCache, *, other_cache: bool = False
) -> list[Target]:
    """:func:`find_targets`, all of which can be measured on ``cache``.

    Raises:
        UsageError: as :func:`find_targets` and :func:`check_belongs`.
    """
    found = find_targets(places)
    for target in found:
        check_belongs(target.load(), target, cache, other_cache=other_cache)
    return found


def _shown_path(sae_dir: Path, url: str | None) -> PurePath:
    """The path whose last part names the SAE: of a variant, of the folder, or of the URL without revision."""
    path: PurePath = sae_dir.resolve()
    if url is not None:
        path = PurePosixPath(re.sub(r"^(hf://[^/]+/[^/@]+)@[^/]+", r"\1", url).partition("://")[2])
    return path.parent if path.name == SAE_FOLDER else path


def choose_output(places: Sequence[Place] | Sequence[Target]) -> Path:
    """The results file of a run folder; of an SAE folder, that of its variant, so that the run's own stay.

    Raises:
        UsageError: there are several folders, so that no place is obvious, or it is a URL or another
            library's, in which nothing is written.
    """
    if len(places) != 1:
        raise UsageError(
            f"{len(places)} folders are measured together: say where the results go, with --out FILE.json"
        )
    place = places[0].place if isinstance(places[0], Target) else places[0]
    if is_url(place):
        raise UsageError(f"{place} is a URL: say where the results go, with --out FILE.json")
    folder = Path(place)
    if (theirs := find_format(folder)) is not None:
        raise UsageError(
            f"{folder} is a folder of {theirs}, and nothing is written into it: say where the results go, "
            "with --out FILE.json"
        )
    is_sae = is_file(folder / CONFIG_FILE)
    return (
        folder.resolve().parent if is_sae and folder.resolve().name == SAE_FOLDER else folder
    ) / RESULTS_FILE


def check_belongs(sae: SAE, target: Target, cache: ActivationCache, *, other_cache: bool = False) -> None:
    """Make sure that ``sae`` was trained from ``cache``.

    An SAE of another library was trained from no cache; it only has to have the hook and the width.

    Args:
        other_cache: another cache of the same model will do.

    Raises:
        UsageError: it was trained from another cache, or the cache lacks its hook or its width.
    """
    trained_on, foreign = sae.cfg.cache.get("fingerprint"), imported_from(sae.cfg) is not None
    beside = sae.cfg.cache.get("beside")
    beside = beside if isinstance(beside, Mapping) else {}
    if missing := [name for name in beside if name not in cache.beside]:
        raise UsageError(
            f"{target.place} was trained on several caches of the same tokens: 'evaluate' takes those beside "
            f"{cache.path} with --set beside.NAME=CACHE, for {', '.join(missing)!r:.300}. 'interpret' and "
            "'export --cache' do not take such SAEs"
        )
    if not foreign and trained_on != cache.fingerprint and not other_cache:
        raise UsageError(
            f"{target.place} was trained from another cache: expected fingerprint {trained_on!s:.80}, but "
            f"{cache.path} has {cache.fingerprint}. Name the cache it was trained from with --cache, or "
            "allow another one of the same model with --other-cache."
        )
    for rows in all_hooks(sae.cfg):
        if rows.hook not in cache.hooks:
            raise UsageError(
                f"{target.place} was trained on hook {rows.hook!r:.80}; {cache.path} has "
                f"{', '.join(cache.hooks)}{_advise_on_hook(sae, target, cache) if foreign else ''}"
            )
        if rows.d_model != cache.d_model(rows.hook):
            raise UsageError(
                f"{target.place} expects rows of width {rows.d_model}; {cache.path} holds width "
                f"{cache.d_model(rows.hook)} at {rows.hook}"
            )
    if not foreign and trained_on != cache.fingerprint:
        _check_same_model(sae.cfg.cache.get("model"), cache, target)
        for name, other in beside.items():
            model = other.get("model") if isinstance(other, Mapping) else None
            _check_same_model(model, cache.beside[name], target)


def _advise_on_hook(sae: SAE, target: Target, cache: ActivationCache) -> str:
    """How to name the hook of another library's SAE as the cache does, where that can be."""
    other = same_activation(sae.cfg.hook)
    same = other if other in cache.hooks else None
    reason = f"{same} is the same activation" if same else "If one of them is the same activation"
    return f". {reason}: saecache import {target.place} --hook {same or 'NAME'} --out FOLDER"


def _check_same_model(trained_on: Any, cache: ActivationCache, target: Target) -> None:
    """Models are the same if their weights are; if no hash of the weights is known, if all else is equal."""
    here = cache.manifest.identity.get("model")
    hashes = [
        model.get("weights_sha256") if isinstance(model, Mapping) else None for model in (trained_on, here)
    ]
    if trained_on is None or (hashes[0] != hashes[1] if all(hashes) else trained_on != here):
        raise UsageError(
            f"{target.place} was trained on activations of another model: expected {trained_on!s:.200}, "
            f"but {cache.path} is of {here!s:.200}"
        )
