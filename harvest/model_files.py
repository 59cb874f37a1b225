"""A model's name -> its files here: configuration and tokenizer first, weights when they are needed."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..common.errors import UsageError
from .network import network_errors

DEMO_MODEL = "builtin:demo"
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model is.

    ``name`` is what a cache calls it: the hub name, 'builtin:demo', or the last part of a local folder's
    path. ``revision`` is the hub commit, None for a folder.
    """

    name: str
    folder: Path
    revision: str | None
    from_hub: bool


def locate_model(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> ModelFiles:
    """Find the model and have its configuration and tokenizer at hand; the weights are not downloaded.

    Raises:
        UsageError: no such model, no access, no connection.
    """
    if name.startswith("builtin:"):
        return _builtin(name, revision)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _refuse_revision(name, revision)
        if not (folder / "config.json").is_file():
            raise UsageError(f"model.name={name!r} is a folder without config.json: not a saved model")
        return ModelFiles(name=folder.resolve().name, folder=folder.resolve(), revision=None, from_hub=False)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"model.name={name!r}: there is no such folder")
    patterns = [*_SMALL_FILES, *(["*.py"] if trust_remote_code else [])]
    folder = _download(name, revision, patterns)
    if not (folder / "config.json").is_file():
        raise UsageError(f"model {name!r} has no config.json on the hub: not a transformers model")
    return ModelFiles(name=name, folder=folder, revision=folder.name, from_hub=True)


def fetch_weights(files: ModelFiles) -> list[Path]:
    """The model's safetensors files, downloaded if need be.

    Raises:
        UsageError: there are none. Pickled weights are never loaded.
    """
    if files.from_hub:
        _download(files.name, files.revision, _weight_names(files.folder))
    paths = [files.folder / name for name in _weight_names(files.folder)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UsageError(
            f"model {files.name!r} has no safetensors weights (missing: {', '.join(missing[:3])}). "
            "Pickled weights are "
            "not loaded, for they can run code; convert the model with save_pretrained(...), or choose "
            "another revision"
        )
    return paths


def weights_sha256(paths: Iterable[Path]) -> str:
    """sha256 of the weights: of the one file, or of the lines ``sha256  name`` of several, by name."""
    digests = []
    for path in sorted(paths):
        with path.open("rb") as file:
            digests.append((hashlib.file_digest(file, "sha256").hexdigest(), path.name))
    if len(digests) == 1:
        return digests[0][0]
    return hashlib.sha256("".join(f"{digest}  {name}\n" for digest, name in digests).encode()).hexdigest()


def _builtin(name: str, revision: str | None) -> ModelFiles:
    from .builtin import DEMO_MODEL_PATH

    if name != DEMO_MODEL:
        raise UsageError(f"model.name={name!r}: the only built-in model is {DEMO_MODEL!r}")
    _refuse_revision(name, revision)
    if not (DEMO_MODEL_PATH / "config.json").is_file():
        raise UsageError(f"the built-in model is not in {DEMO_MODEL_PATH}: this installation is incomplete")
    return ModelFiles(name=name, folder=DEMO_MODEL_PATH, revision=None, from_hub=False)


def _refuse_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise UsageError(
            f"model.revision={revision!r} has no effect on {name!r}, which is not on the hub: leave it out"
        )


def _weight_names(folder: Path) -> list[str]:
    index = folder / _WEIGHTS_INDEX
    if not index.is_file():
        return [_WEIGHTS]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} is not a safetensors index: {error!r}") from None
    if any(not isinstance(name, str) or "/" in name or "\\" in name for name in names):
        raise UsageError(f"{index} names files outside its folder")
    return [str(name) for name in names]


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise UsageError(
            f"model {name}: access must be asked for on the hub; then log in ('hf auth login')"
        ) from None
    except RevisionNotFoundError:
        raise UsageError(f"model {name} has no revision {revision!r}") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UsageError(
            f"no model {name!r}: it is neither a folder here nor on the hub (or it is private and you "
            "are not logged in)"
        ) from None
    except LocalEntryNotFoundError:
        raise UsageError(
            f"model {name!r} is neither a folder here nor downloaded, and the hub cannot be reached"
        ) from None
    except network_errors() as error:
        raise UsageError(f"cannot download model {name!r}: {error}") from None
