"""The claims of the three papers, on a cache: trains every arm that they compare, measures, writes JSON.

    saecache harvest smollm2-135m --out caches/smollm2-135m
    python benchmarks/papers/run.py --cache caches/smollm2-135m --runs runs/papers --form full
    python benchmarks/papers/page.py          # docs/papers.md and its figures, from the JSON alone

An interrupted run continues where it was, and a section that has been measured is not measured again. Each
section gives one file in ``benchmarks/results/papers/<form>/``. The short form only proves that everything
works.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from arms import BY_K, FORMS, SECTIONS, Form
from sections import best_rates, fitted_zipf, measure_section

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
        file = results / f"{name}.json"
        wanted = not settings.only or section in settings.only
        if not wanted or (settings.k and section in BY_K and part.ks != (settings.k,)):
            continue
        if file.is_file():
            print(f"{name}: measured already ({file})", flush=True)
            continue
        rates = read(results, "rates")
        baselines = read(results, "baselines")
        found = measure_section(
            section,
            part,
            best_rates(rates) if rates else {},
            chosen_zipf(settings.zipf, baselines),
            cache,
            model,
            settings.runs / name,
            settings.seed,
        )
        if found is None:
            continue
        found["form"] = settings.form
        results.mkdir(parents=True, exist_ok=True)
        write_bytes(file, (json.dumps(found, indent=1) + "\n").encode())
        print(f"{name}: {file}", flush=True)


def chosen_zipf(given: list[float] | None, baselines: dict[str, Any] | None) -> dict[str, float]:
    """The law as given, else as fitted to the baselines, else the paper's."""
    if given is not None:
        return dict(zip(("alpha", "beta"), given, strict=True))
    return fitted_zipf(baselines) if baselines else PAPER_ZIPF


def parts(form: Form) -> Iterator[tuple[str, str, Form]]:
    """What is trained at a time, in this order: its name, its section, and the form with its k.

    The largest sections are done k by k, so that what matters most is measured first.
    """
    done = set()
    for section in SECTIONS:
        if section in done:
            continue
        if section not in BY_K:
            yield section, section, form
            continue
        for k in form.ks:
            for one in BY_K:
                yield f"{one}_k{k}", one, replace(form, ks=(k,))
        done.update(BY_K)


def read(results: Path, section: str) -> dict[str, Any] | None:
    """The measured section, None where there is none yet."""
    file = results / f"{section}.json"
    return json.loads(file.read_text()) if file.is_file() else None


if __name__ == "__main__":
    main()
