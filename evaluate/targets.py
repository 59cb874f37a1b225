"""Finds the SAEs in the folders that a user names, and checks that the cache is theirs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.errors import UsageError
from ..store import ActivationCache
from ..train import SAE, load_sae
from ..train.foreign.building import imported_from
from ..train.foreign.formats import find_format
from ..train.foreign.hook_names import same_activation
from ..train.sae import CONFIG_FILE, SAE_FOLDER, find_saes
from ..train.sae_hooks import all_hooks
from .results import RESULTS_NAME


@dataclass(frozen=True, kw_only=True)
class Target:
    """One SAE to measure; ``name`` is unique among the targets."""

    name: str
    sae_dir: Path

    def load(self, device: str | torch.device = "cpu") -> SAE:
        return load_sae(self.sae_dir, device)


def find_targets(folders: Sequence[Path]) -> list[Target]:
    """Find the SAEs in ``folders``, which are SAE folders or run folders with ``<variant>/sae`` in them.

    If SAEs of two runs have the same name, they are called ``run/name``.

    Raises:
        UsageError: a folder holds no SAE, or the same SAE is named twice.
    """
    found = [sae_dir for folder in folders for sae_dir in find_saes(folder)]
    doubled = [str(path) for path, count in Counter(path.resolve() for path in found).items() if count > 1]
    if doubled:
        raise UsageError(f"the same SAE is named twice: {', '.join(doubled)}")
    short = [_short_name(path) for path in found]
    names = [
        f"{path.resolve().parent.parent.name}/{name}" if short.count(name) > 1 else name
        for path, name in zip(found, short, strict=True)
    ]
    clashing = sorted(name for name, count in Counter(names).items() if count > 1)
    if clashing:
        raise UsageError(f"several SAEs would be called {', '.join(clashing)}: rename a run folder")
    return [Target(name=name, sae_dir=path) for name, path in zip(names, found, strict=True)]


def find_targets_of(
    folders: Sequence[Path], cache: ActivationCache, *, other_cache: bool = False
) -> list[Target]:
    """:func:`find_targets`, all of which can be measured on ``cache``.

    Raises:
        UsageError: as :func:`find_targets` and :func:`check_belongs`.
    """
    found = find_targets(folders)
    for target in found:
        check_belongs(target.load(), target, cache, other_cache=other_cache)
    return found


def _short_name(sae_dir: Path) -> str:
    resolved = sae_dir.resolve()
    return resolved.parent.name if resolved.name == SAE_FOLDER else resolved.name


def choose_output(folders: Sequence[Path]) -> Path:
    """The results file of a run folder; of an SAE folder, that of its variant, so that the run's own stay.

    Raises:
        UsageError: there are several folders, so that no place is obvious, or it is another library's, in
            which nothing is written.
    """
    if len(folders) != 1:
        raise UsageError(
            f"{len(folders)} folders are measured together: say where the results go, with --out FILE.json"
        )
    folder = folders[0]
    if (theirs := find_format(folder)) is not None:
        raise UsageError(
            f"{folder} is a folder of {theirs}, and nothing is written into it: say where the results go, "
            "with --out FILE.json"
        )
    is_sae = (folder / CONFIG_FILE).is_file()
    return (
        folder.resolve().parent if is_sae and folder.resolve().name == SAE_FOLDER else folder
    ) / RESULTS_NAME


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
            f"{target.sae_dir} was trained on several caches of the same tokens: name those beside "
            f"{cache.path} with --set beside.NAME=CACHE for {', '.join(missing)!r:.300}"
        )
    if not foreign and trained_on != cache.fingerprint and not other_cache:
        raise UsageError(
            f"{target.sae_dir} was trained from another cache: expected fingerprint {trained_on!s:.80}, but "
            f"{cache.path} has {cache.fingerprint}. Name the cache it was trained from with --cache, or "
            "allow another one of the same model with --other-cache."
        )
    for rows in all_hooks(sae.cfg):
        if rows.hook not in cache.hooks:
            raise UsageError(
                f"{target.sae_dir} was trained on hook {rows.hook!r:.80}; {cache.path} has "
                f"{', '.join(cache.hooks)}{_advise_on_hook(sae, target, cache) if foreign else ''}"
            )
        if rows.d_model != cache.d_model(rows.hook):
            raise UsageError(
                f"{target.sae_dir} expects rows of width {rows.d_model}; {cache.path} holds width "
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
    return f". {reason}: saecache import {target.sae_dir} --hook {same or 'NAME'} --out FOLDER"


def _check_same_model(trained_on: Any, cache: ActivationCache, target: Target) -> None:
    """Models are the same if their weights are; if no hash of the weights is known, if all else is equal."""
    here = cache.manifest.identity.get("model")
    hashes = [
        model.get("weights_sha256") if isinstance(model, Mapping) else None for model in (trained_on, here)
    ]
    if trained_on is None or (hashes[0] != hashes[1] if all(hashes) else trained_on != here):
        raise UsageError(
            f"{target.sae_dir} was trained on activations of another model: expected {trained_on!s:.200}, "
            f"but {cache.path} is of {here!s:.200}"
        )
