"""``results.json``: writing and reading it."""

from collections import Counter
from pathlib import Path

from pydantic import ValidationError

from ...common.errors import UsageError
from ...common.lookups import exists, is_file
from ...store.durable import write_bytes
from ...store.untrusted_files import read_object
from ...store.untrusted_json import describe_invalid
from .evaluation import FORMAT_VERSION, Results
from .metrics import ZipfFit

MAX_RESULTS_BYTES = 256 << 20
NO_RESULTS = "it is not a results file of saecache evaluate: measure again"


def write_results(results: Results, path: Path) -> None:
    """Write ``path`` as a whole or not at all."""
    write_bytes(path, results.model_dump_json().encode("utf-8"))


def read_results(path: Path) -> Results:
    """The results in ``path``.

    Raises:
        UsageError: no such file, or not results of a version this one reads.
    """
    try:
        values = read_object(path, NO_RESULTS, MAX_RESULTS_BYTES)
    except FileNotFoundError:
        fix = f"measure first, with 'saecache evaluate {path.parent} --cache CACHE'"
        if not exists(path.parent):
            fix = "there is no such folder"
        raise UsageError(f"no results at {path}: {fix}") from None
    try:
        results = Results.model_validate(values)
    except ValidationError as error:
        raise UsageError(
            f"{path} is not a results file of saecache evaluate ({describe_invalid(error)}); measure again"
        ) from None
    if results.format_version != FORMAT_VERSION:
        raise UsageError(
            f"{path} has format version {results.format_version}, expected {FORMAT_VERSION}; measure again"
        )
    if doubled := [name for name, count in Counter(sae.name for sae in results.saes).items() if count > 1]:
        raise UsageError(
            f"{path} holds several SAEs called {doubled[0]!r:.80}, and each needs a name of its own; measure "
            "again"
        )
    return results


def read_fitted_zipf(place: str) -> ZipfFit:
    """The law that an evaluation fitted to an SAE's densities (not to their logarithms).

    That fit describes the latents that make most of the matches, as the paper's alpha 1 and beta 6.8 do. On
    few rows the fit to logarithms is ruled by the tail, which falls faster than any power.

    Args:
        place: a results file; with ``:NAME`` after it, which SAE in it, where it holds several.

    Raises:
        UsageError: no such file or SAE, or no law was fitted to it.
    """
    path, colon, name = place.rpartition(":")
    if not colon or is_file(place):
        path, name = place, ""
    results = read_results(Path(path))
    found = [sae for sae in results.saes if sae.name == name or not name]
    if len(found) != 1:
        names = ", ".join(sae.name for sae in results.saes)
        wanted = f"no SAE {name!r}" if name else f"{len(found)} SAEs"
        raise UsageError(f"{path} holds {wanted}; name one of them, as {path}:NAME: {names:.2000}")
    if found[0].zipf is None:
        raise UsageError(
            f"{path}: no Zipf law was fitted to {found[0].name:.80}, because fewer than 10 of its "
            "latents fired"
        )
    return found[0].zipf.linear
