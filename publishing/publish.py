"""One SAE of a run becomes a place of its own on the Hub, or in a bucket."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import CorruptCacheError, UsageError
from ..common.versions import package_version
from ..evaluate.results import Results, SaeResult, read_results
from ..store.durable import write_bytes
from ..store.remote import RemoteFolder, is_url, open_remote_folder
from ..store.remote.places.retries import Patience
from ..store.remote.places.urls import parse_url
from ..store.untrusted_files import read_text
from ..train.loading import find_sae, load_sae
from ..train.published import MANIFEST_NAME, SAE_FILES, PublishedFiles, read_published
from ..train.run_files import RECIPE_FILE, RESULTS_FILE
from ..train.sae import SAE, SAE_FOLDER
from .card import PLOT_NAME, make_card
from .plot import draw_plot

CARD_NAME = "README.md"
_MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Published:
    """Where it is now, which files were sent, and what a reader of the card should know."""

    url: str
    name: str
    fingerprint: str
    files: dict[str, int]
    sent: list[str]
    notes: list[str]


def publish_sae(
    sae_dir: Path | str,
    url: str,
    *,
    results: Path | str | None = None,
    without_results: bool = False,
    license_name: str | None = None,
    replace: bool = False,
    preview: Path | None = None,
    patience: Patience | None = None,
) -> Published:
    """Publish an SAE with a model card that has its results, its recipe, its fingerprint and a plot.

    Files that are there already are not sent again. A repository of the Hub that does not exist is made,
    private. All files are one commit there; in a bucket ``saecache.json`` comes last.

    Args:
        sae_dir: ``RUN/VARIANT``, its ``sae`` folder, or a run with one SAE.
        url: ``hf://ORG/NAME[@REVISION][/path]``, or a place in a bucket.
        results: the results file. Default: ``results.json`` of the run.
        without_results: publish without them.
        license_name: for the card's metadata, as ``mit``.
        replace: another SAE that is there may be replaced.
        preview: a new folder that the files are written to; nothing is published.

    Raises:
        UsageError: no SAE there, no results of it, another SAE at the URL, or no access.
        RemoteError: the Hub or the bucket kept failing; the same command continues.
    """
    if not is_url(url) or parse_url(url).bucket.startswith("datasets/"):
        raise UsageError(
            f"an SAE is published as a model: expected hf://ORG/NAME or a bucket's URL, got {url}"
        )
    folder = find_sae(Path(sae_dir))
    sae = load_sae(folder)
    run = folder.parents[1] if folder.name == SAE_FOLDER else folder
    measured = None if without_results else _find_results(run, results, folder, sae)
    with tempfile.TemporaryDirectory(prefix="saecache-publish-") as temporary:
        out = preview or Path(temporary)
        notes = _write_files(out, run, sae, str(parse_url(url)), measured, license_name)
        files = PublishedFiles.of(out, str(sae.cfg.cache.get("fingerprint", "")))
        write_bytes(out / MANIFEST_NAME, files.to_json())
        sizes = {name: (out / name).stat().st_size for name in [*files.files, MANIFEST_NAME]}
        sent = []
        if preview is None:
            place = open_remote_folder(url, patience, create=True)
            sent = _send(place, out, files, replace=replace, notes=notes)
    return Published(str(parse_url(url)), sae.cfg.name, files.fingerprint, sizes, sent, notes)


def _find_results(run: Path, named: Path | str | None, sae_dir: Path, sae: SAE) -> tuple[Results, SaeResult]:
    """The results file, and what it says of this SAE."""
    path = Path(named) if named else run / RESULTS_FILE
    if not path.is_file():
        raise UsageError(
            f"no results at {path}: measure first, with 'saecache evaluate {run} --cache CACHE', name the "
            "file with --results, or publish with --without-results"
        )
    results = read_results(path)
    for result in results.saes:
        if _is_place_of(path.parent, result.sae_dir, sae_dir):
            break
    else:
        listed = ", ".join(result.sae_dir for result in results.saes)
        raise UsageError(f"{path} has no results of {sae_dir}; it has those of {listed:.2000}: measure again")
    if result.config.get("training") != sae.cfg.model_dump(mode="json")["training"] and result.config:
        raise UsageError(f"{path} was measured before {sae_dir} was trained: measure again")
    if result.is_of_weights(sae.weights_sha256()) is False:
        raise UsageError(f"{path} was measured on other weights than {sae_dir} has now: measure again")
    return results, result


def _is_place_of(folder: Path, name: str, sae_dir: Path) -> bool:
    """Whether ``folder / name``, a path of others, is ``sae_dir``."""
    try:
        return (folder / name).resolve() == sae_dir.resolve()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL
        return False


def _write_files(
    out: Path,
    run: Path,
    sae: SAE,
    url: str,
    measured: tuple[Results, SaeResult] | None,
    license_name: str | None,
) -> list[str]:
    """Everything but the manifest; returns notes for the user."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UsageError(f"{out} is not empty: give a new folder")
    notes = []
    sae.save(out)
    recipe_file = run / RECIPE_FILE
    recipe = read_text(recipe_file, _MAX_RECIPE_BYTES) if recipe_file.is_file() else None
    if recipe is not None:
        write_bytes(out / RECIPE_FILE, recipe.encode())
    results, result = measured or (None, None)
    if results is not None and result is not None:
        others = [other for other in results.saes if other.hook == result.hook and other is not result]
        try:
            plot = draw_plot(result, others)
        except (ValueError, ArithmeticError) as error:
            raise UsageError(
                f"the results hold a number that cannot be drawn ({error}): measure again, or publish with "
                "--without-results"
            ) from None
        write_bytes(out / PLOT_NAME, plot.encode())
        own = result.model_copy(update={"latents": [], "sae_dir": "."})  # contexts are text of others
        cache = results.cache.model_copy(update={"path": ""})
        alone = results.model_copy(update={"saes": [own], "cache": cache, "overlap": []})
        write_bytes(out / RESULTS_FILE, alone.model_dump_json(indent=1).encode())
    card = make_card(
        sae.cfg,
        url,
        result=result,
        results=results,
        recipe=recipe,
        version=package_version("saecache") or "?",
        license_name=license_name,
    )
    write_bytes(out / CARD_NAME, card.encode())
    model = sae.cfg.cache.get("model_name")
    if isinstance(model, str) and Path(model).is_absolute():
        notes.append(f"the model's name is a path of this machine, and the files say it: {model:.300}")
    if license_name is None:
        notes.append("the card states no licence: --license names one")
    return notes


def _send(
    place: RemoteFolder, out: Path, files: PublishedFiles, *, replace: bool, notes: list[str]
) -> list[str]:
    """Upload what is missing or different; returns the names of those files."""
    try:
        there = read_published(place)
    except CorruptCacheError as error:
        if not replace:
            raise UsageError(f"{error}: choose another place, or replace it with --replace") from None
        there = None
    missing = [
        name
        for name, file in files.files.items()
        if place.find_equal(name, size=file.size, sha256=file.sha256) is None
    ]
    if not replace:
        for name in SAE_FILES:
            if name in missing and place.head(name) is not None:
                raise UsageError(
                    f"{place.url} holds another SAE (its {name} differs): choose another place, or replace "
                    "it with --replace"
                )
        if CARD_NAME in missing and not _is_our_card(place, there):
            missing.remove(CARD_NAME)
            notes.append(
                f"{CARD_NAME} there is not the one that was published, and stays: --replace replaces it"
            )
    for name in missing:
        file = files.files[name]
        place.upload(out / name, name, size=file.size, sha256=file.sha256)
    if missing or there != files:  # a killed publish may have sent every file but this one
        content = (out / MANIFEST_NAME).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        place.upload(out / MANIFEST_NAME, MANIFEST_NAME, size=len(content), sha256=digest)
        missing.append(MANIFEST_NAME)
    place.flush()
    return missing


def _is_our_card(place: RemoteFolder, there: PublishedFiles | None) -> bool:
    """Whether the card of the place may be replaced: there is none, or nobody has edited it."""
    if place.head(CARD_NAME) is None:
        return True
    published = there.files.get(CARD_NAME) if there else None
    return published is not None and bool(
        place.find_equal(CARD_NAME, size=published.size, sha256=published.sha256)
    )
