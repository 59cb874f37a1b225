"""Exports one SAE folder as one folder of another library."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...common.errors import UsageError
from ...common.versions import package_version
from ...store import ActivationCache, open_cache
from ...store.durable import write_bytes
from ...train import SAE
from ...train.foreign.exported import REPORT_FILE
from ..rows import choose_rows
from ..targets import Place, Target, check_belongs, find_targets
from .comparison import Comparison, check, choose_limits, compare, make_random_rows, read_cached_rows
from .format import Exportable, Format, Forward, Written
from .formats import load_formats
from .metadata import find_provenance
from .new_folder import check_new, new_folder
from .rules import Form, Rule, choose_rule
from .space import Space, choose_space

CACHED_ROWS = 8192  # held-out rows that an export is compared on
LATENT_FORMATS = ("delphi", "neuronpedia")  # see latent_formats.py


@dataclass(frozen=True, kw_only=True)
class Export:
    """A finished export. Its file ``saecache-export.json`` holds the same, and the SAE's config.

    Attributes:
        rows: what the export takes as input: ``raw`` activations, or ``normalized`` ones.
        feature_factor: features of the export are the SAE's times this; with ``features_times_decoder_norm``
            they are also multiplied by the norm of the latent's decoder row.
        unknown: fields of the format's metadata that neither the SAE nor the cache, if it was given, says.
        loading: Python that loads it.
    """

    path: Path
    format: str
    architecture: str
    sae: str
    kind: str
    exact: bool
    rows: str
    feature_factor: float
    features_times_decoder_norm: bool
    limits: dict[str, float]
    comparisons: list[Comparison]
    unknown: list[str]
    loading: str

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path), "saecache": package_version("saecache")}


def export_sae(
    sae_dir: Path | str,
    format: str,  # noqa: A002 - the option's name
    out: Path | str,
    *,
    cache: ActivationCache | Path | str | None = None,
    normalized_input: bool = False,
) -> Export:
    """Write an SAE for another library into the new folder ``out``, and check that both compute the same.

    The files are read back and run by a plain version of that library's forward pass, on random rows and, if
    ``cache`` is given, on its held-out rows. ``out`` appears only if features and reconstructions agree.

    Args:
        sae_dir: the SAE's folder, that of a run with one SAE, or a URL.
        format: the name of a file in ``formats/``, as ``saelens``.
        cache: the cache the SAE was trained from; it also names the text, the context and BOS.
        normalized_input: the rows handed in will be normalized already, as the cache normalizes them.

    Raises:
        UsageError: no SAE there, an unknown format or one that cannot hold it, ``out`` exists, another cache.
        SaecacheError: the export does not compute what the SAE does, or cannot be written.
    """
    formats = load_formats()
    if format not in formats:
        raise UsageError(
            f"unknown format {format!r}: expected one of {', '.join(formats)}, or for latents one of "
            f"{', '.join(LATENT_FORMATS)}"
        )
    target = find_one(sae_dir)
    sae = target.load()
    rule = choose_rule(sae)
    able, chosen = _find_able(sae, rule, format), formats[format]
    steps = {name: each.steps for name, each in able.items()}
    space = choose_space(sae, format_name=format, steps=steps, normalized_input=normalized_input)
    if not rule.exact and cache is None:
        raise UsageError(
            f"SAE {sae.cfg.name} ({sae.cfg.kind}) selects by {sae.cfg.inference!r}, which {format} "
            f"has only as {rule.form!r}; whether the two agree is a matter of the rows: give --cache, the "
            "cache it was trained from, to measure it"
        )
    path = check_new(out, 2 * sum(t.numel() * t.element_size() for t in sae.buffers()))
    opened = open_cache(cache) if isinstance(cache, (str, Path)) else cache
    if opened is not None:
        check_belongs(sae, target, opened)
    provenance = find_provenance(sae, opened)
    origin = asdict(provenance)
    if not sae.cfg.predicted:
        del origin["target"]
    what = Exportable(sae=sae, rule=rule, space=space, provenance=provenance)
    with new_folder(path) as folder:
        written = chosen.write(what, folder)
        limits = choose_limits(rule.exact)
        comparisons = list(_comparisons(what, written, chosen.read(folder), opened))
        who, advice = f"{format}'s {written.architecture}", _advice(rule, space, chosen)
        for comparison in comparisons:
            check(comparison, limits, who=who, advice=advice)
        export = Export(
            path=path,
            format=format,
            architecture=written.architecture,
            sae=sae.cfg.name,
            kind=sae.cfg.kind,
            exact=rule.exact,
            rows=space.rows,
            feature_factor=space.factor,
            features_times_decoder_norm=written.times_decoder_norm,
            limits=limits,
            comparisons=comparisons,
            unknown=[key for key, value in origin.items() if value is None],
            loading=chosen.loading(path),
        )
        report = {
            **{key: value for key, value in export.to_json().items() if key not in ("path", "loading")},
            "provenance": origin,
            "cfg": sae.cfg.model_dump(mode="json"),
        }
        write_bytes(folder / REPORT_FILE, (json.dumps(report, indent=2) + "\n").encode("utf-8"))
    return export


def find_one(folder: Place) -> Target:
    """The one SAE that a folder or a URL stands for.

    Raises:
        UsageError: there is none, or several.
    """
    targets = find_targets([folder])
    if len(targets) > 1:
        raise UsageError(
            f"{folder} holds {len(targets)} SAEs, and one is exported at a time: name one of them, as "
            f"{targets[0].sae_dir}"
        )
    return targets[0]


def _find_able(sae: SAE, rule: Rule, wanted: str) -> dict[str, Format]:
    """The formats that can hold an SAE, by name.

    Raises:
        UsageError: the one called ``wanted`` cannot.
    """
    formats, shape = load_formats(), sae.cfg.shape
    if shape == "crosscoder":
        raise UsageError(
            f"SAE {sae.cfg.name} is a crosscoder of {sae.cfg.hook}, and none of the formats "
            f"{', '.join(formats)} holds crosscoders; share its own folder instead"
        )
    able = {name: each for name, each in formats.items() if rule.form in _forms_of(each, shape)}
    if wanted in able:
        return able
    if shape != "autoencoder":
        raise UsageError(
            f"SAE {sae.cfg.name} is a {shape} that finds its codes by {sae.cfg.inference!r}, and "
            f"{wanted} has no {shape}s of that rule"
            f"{': use --format ' + ' or '.join(able) if able else ', nor has another format'}"
        )
    if not formats[wanted].forms:
        raise UsageError(
            f"SAE {sae.cfg.name} is an autoencoder, and {wanted} holds cross-layer transcoders only: "
            f"use --format {' or '.join(able)}"
        )
    raise UsageError(
        f"SAE {sae.cfg.name} ({sae.cfg.kind}) finds its codes by {sae.cfg.inference!r}, and {wanted} "
        f"holds {', '.join(sorted(formats[wanted].forms))} only: use --format {' or '.join(able)}"
    )


def _forms_of(chosen: Format, shape: str) -> frozenset[Form]:
    """The rules that a format has for SAEs of a ``shape`` (:attr:`SAEConfig.shape`)."""
    if shape == "cross-layer transcoder":
        return chosen.cross_layer_forms
    return chosen.transcoder_forms if shape == "transcoder" else chosen.forms


def _comparisons(
    what: Exportable, written: Written, forward: Forward, cache: ActivationCache | None
) -> Iterator[Comparison]:
    sae, space = what.sae, what.space
    factor = torch.tensor(space.factor)
    if written.times_decoder_norm:
        factor = factor * sae.W_dec.norm(dim=1)
    if what.rule.exact:  # a rule that only agrees on most of the model's rows needs such rows
        yield compare(sae, forward, space, factor, [make_random_rows(sae, space)], "random")
    if cache is not None:
        measured, _ = choose_rows(cache, CACHED_ROWS)
        yield compare(
            sae, forward, space, factor, read_cached_rows(sae, space, cache, measured), measured.split
        )


def _advice(rule: Rule, space: Space, chosen: Format) -> str:
    if not rule.exact:
        return "Its own rule and this one select too differently on these rows."
    if space.step is not None:
        return chosen.steps[space.step]
    return "Nothing is known that would explain it: please report it, with the SAE."
