"""SAEs of the Hugging Face Hub and of buckets, downloaded to a folder on this machine.

What ``saecache publish`` has written is fetched and checked by its list of files. Anything else of the Hub,
``hf://ORG/NAME[@REVISION][/FOLDER]``, is a plain download by huggingface_hub, into its own cache, of the
files of one SAE and of no other.
"""

from pathlib import Path

from ...common.errors import UsageError
from ...store.remote import is_url
from ...store.remote.places.by_url import open_remote_folder
from ...store.remote.places.hub.address import HubRepository, parse_hub_path
from ..published import fetch_sae, read_published
from ..sae import CONFIG_FILE, WEIGHTS_FILE
from .exported import REPORT_FILE
from .formats import FORMATS

PREFIX = "hf://"


def find_folder(place: str | Path) -> Path:
    """The folder on this machine that ``place`` names; the SAE at a URL is downloaded once.

    Raises:
        UsageError: there is no SAE at the URL, or no access.
    """
    return download_sae(str(place)) if is_url(place) else Path(place)


def download_sae(url: str) -> Path:
    """A folder here with the SAE at ``url``.

    Raises:
        UsageError: there is no SAE, or no access.
    """
    if is_hub_name(url):
        _parse(url)  # before the Hub is asked
        if not _is_published(url):
            return download_folder(url)
    return fetch_sae(url)


def _is_published(url: str) -> bool:
    """Whether the place has what ``saecache publish`` writes, or the weights of an SAE as we write them."""
    place = open_remote_folder(url)
    return read_published(place) is not None or place.head(WEIGHTS_FILE) is not None


def is_hub_name(place: str | Path) -> bool:
    """Whether ``place`` names a folder of the Hub."""
    return isinstance(place, str) and place.startswith(PREFIX)


def download_folder(name: str) -> Path:
    """Download the files that an SAE in one folder of a model repository may have; the folder here.

    Raises:
        UsageError: the name is not of this form, there is no such folder, or the Hub cannot be reached.
    """
    repository, inside = _parse(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    files = {CONFIG_FILE, WEIGHTS_FILE, REPORT_FILE, "config.json"}
    files |= {file for each in FORMATS.values() for file in (*each.weights, each.config) if file}
    patterns = [f"{inside}/{file}" if inside else file for file in sorted(files)]
    try:
        place = Path(
            snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=repository.revision,
                allow_patterns=patterns,
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UsageError(
            f"{name} cannot be downloaded ({error!s:.200}): check the name, log in ('hf auth login') if it "
            "is private, or give a local folder"
        ) from None
    folder = place / inside
    if not folder.is_dir():
        raise UsageError(
            f"{repository.name} has no folder {inside!r} with an SAE in it: look at its list of files"
        )
    return folder


def _parse(name: str) -> tuple[HubRepository, str]:
    """(repository, folder in it), of which no part can mean another folder or several."""
    try:
        repository, folder = parse_hub_path(name.removeprefix(PREFIX))
    except UsageError:
        repository = None
    if repository is None or ".." in folder.split("/") or set(folder) & set("*?[]"):
        raise UsageError(f"{name!r:.200} names no SAE of the Hub: expected hf://ORG/NAME[@REVISION][/FOLDER]")
    return repository, folder
