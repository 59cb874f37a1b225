"""The claims of the three papers, on a cache: trains every arm that they compare, measures, writes JSON.

    saecache harvest smollm2-135m --out caches/smollm2-135m
    python benchmarks/papers/run.py --cache caches/smollm2-135m --runs runs/papers --form full
    python benchmarks/papers/page.py          # docs/papers.md and its figures, from the JSON alone

An interrupted run continues where it was, and what has been measured is not measured again. Each section
gives one file in ``benchmarks/results/papers/<form>/``. The short form only proves that everything
works.
"""

import argparse
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from arms import BY_HOOK, BY_K, BY_STEPS, SECTIONS, TUNED, layer_prefix
from forms import FORMS, Form
from learning_rates import arms_to_measure, best_rates, rates_to_try
from sections import fitted_zipf, measure_section

from saecache import open_cache
from saecache.harvest import load_model_of
from saecache.store.durable import write_bytes

RESULTS = Path(__file__).parents[1] / "results" / "papers"
PAPER_ZIPF = {"alpha": 1.0, "beta": 6.8}  # section 4.4, footnote 6: fitted to GPT-2's residual stream


def parser(description: str | None, *, cache: bool = True) -> argparse.ArgumentParser:
    """The options that the scripts of a form have. The description is the script's docstring."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if cache:
        made.add_argument("--cache", type=Path, required=True)
    made.add_argument("--runs", type=Path, required=True)
    made.add_argument("--form", choices=tuple(FORMS), default="full")
    made.add_argument("--results", type=Path, default=RESULTS)
    return made


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--only", choices=tuple(SECTIONS), action="append", default=[])
    options.add_argument(
        "--k", type=int, default=None, help="only this k, of sections that are trained k by k"
    )
    options.add_argument(
        "--seed",
        type=int,
        default=None,
        help="train and measure this seed only, so that several processes share a section; a run without it "
        "then writes the JSON file",
    )
    options.add_argument(
        "--zipf",
        type=float,
        nargs=2,
        metavar=("ALPHA", "BETA"),
        help="instead of the fit to section baselines",
    )
    settings = options.parse_args()
    form = FORMS[settings.form]
    results = settings.results / settings.form
    cache = open_cache(settings.cache)
    model = lru_cache(1)(lambda: load_model_of(cache))
    for name, section, part in parts(form):
        wanted = not settings.only or section in settings.only
        if not wanted or (settings.k and section in BY_K and part.ks != (settings.k,)):
            continue
        rates = read(results, "rates")
        baselines = read(results, "baselines")
        rates = best_rates(rates) if rates else {}
        measure = partial(
            measure_section,
            section,
            rates=rates,
            zipf=chosen_zipf(settings.zipf, baselines),
            cache=cache,
            model=model,
            only_seed=settings.seed,
        )
        known, runs = read(results, name), settings.runs / name
        for found in measure_what_is_missing(section, part, rates, measure, known, runs):
            found["form"] = settings.form
            file = results / f"{name}.json"
            results.mkdir(parents=True, exist_ok=True)
            write_bytes(file, (json.dumps(found, indent=1) + "\n").encode())
            print(f"{name}: {file}", flush=True)


def measure_what_is_missing(
    section: str,
    form: Form,
    rates: Mapping[str, float],
    measure: Callable[..., dict[str, Any] | None],
    known: dict[str, Any] | None,
    runs: Path,
) -> Iterator[dict[str, Any]]:
    """What is to be written for a section, each time that more of it was measured.

    A measured section of ``TUNED`` is measured again for arms that it lacks and for those whose learning
    rates have changed since.
    Section ``rates`` grows until the best rate of every kind lies between others.

    Args:
        rates: the best learning rates so far, by kind.
        measure: trains and measures a section: ``measure_section`` without ``form``, ``runs`` and ``wanted``.
        known: what was measured before; None for nothing.
        runs: the folder of the section's trainings.
    """
    if known is None:
        if (known := measure(form=form, runs=runs)) is None:
            return
        yield known
    arms = SECTIONS[section](form, {})
    if section in TUNED and (wanted := arms_to_measure(known, arms, rates)):
        key = json.dumps([wanted, rates], sort_keys=True)
        folder = runs.with_name(f"{runs.name}-{sha256(key.encode()).hexdigest()[:8]}")
        if more := measure(form=form, runs=folder, wanted=wanted):
            found = with_arms({**known, "rates": more["rates"]}, more, wanted)
            yield {**found, "arms": {name: found["arms"][name] for name in arms if name in found["arms"]}}
    while section == "rates" and (missing := rates_to_try(known)):
        rate = min(missing.values())
        one = replace(form, rates=(rate,))
        wanted = [n for n, arm in SECTIONS[section](one, {}).items() if missing.get(arm["kind"]) == rate]
        more = measure(form=one, runs=runs.with_name(f"{runs.name}-{rate:g}"), wanted=wanted)
        if more is None:
            return
        known = with_arms(known, more, wanted)
        yield known


def with_arms(known: dict[str, Any], more: dict[str, Any], arms: Collection[str]) -> dict[str, Any]:
    """A measured section in which ``arms`` are those of ``more``, or failed there."""

    def keep(found: dict[str, Any]) -> dict[str, Any]:
        return {name: one for name, one in found.items() if name.rpartition("_seed")[0] not in arms}

    failed = keep(known["failed"]) | more["failed"]
    return {**known, "arms": known["arms"] | more["arms"], "failed": failed}


def chosen_zipf(given: list[float] | None, baselines: dict[str, Any] | None) -> dict[str, float]:
    """The law as given, else as fitted to the baselines, else the paper's."""
    if given is not None:
        return dict(zip(("alpha", "beta"), given, strict=True))
    return fitted_zipf(baselines) if baselines else PAPER_ZIPF


def parts(form: Form) -> Iterator[tuple[str, str, Form]]:
    """What is trained at a time, in this order: its name, its section, and the form with its k.

    The largest sections are done k by k, so that what matters most is measured first. Others are done for
    each of several hooks, or for each of several numbers of steps.
    """
    done = set()
    for section in SECTIONS:
        if section in done:
            continue
        if section in BY_K:
            for k in form.ks:
                for one in BY_K:
                    yield f"{one}_k{k}", one, replace(form, ks=(k,))
            done.update(BY_K)
        elif section in BY_HOOK:
            for hook in form.other_hooks:
                part = replace(form, hook=hook)
                yield layer_prefix(part).rstrip("_"), section, part
        elif section in BY_STEPS:
            for times in form.longer:
                yield f"{section}_x{times}", section, replace(form, steps=form.steps * times)
        elif SECTIONS[section](form, {}):
            yield section, section, form


def read(results: Path, section: str) -> dict[str, Any] | None:
    """The measured section, None where there is none yet."""
    file = results / f"{section}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def is_measured(file: Path) -> bool:
    """Whether a script's file of results is there, which it says: an interrupted run goes on after it."""
    if file.is_file():
        print(f"{file.stem}: {file}, measured before; remove it to measure again", flush=True)
    return file.is_file()


if __name__ == "__main__":
    main()
