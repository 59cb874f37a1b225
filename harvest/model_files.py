"""A model's name -> its files here: configuration and tokenizer first, weights when they are needed."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..common.errors import UsageError
from .hub import download_model_files

DEMO_MODEL = "builtin:demo"
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model is.

    ``name`` is what a cache calls it: the hub name, 'builtin:demo', or the last part of a local path.
    ``revision`` is the hub commit, None for local files. ``gguf_file`` is the name of the one file in
    ``folder`` that holds configuration, tokenizer and weights, None for the usual files of transformers.
    """

    name: str
    folder: Path
    revision: str | None
    from_hub: bool
    gguf_file: str | None = None

    @property
    def place(self) -> Path:
        """The folder, or the GGUF file."""
        return self.folder if self.gguf_file is None else self.folder / self.gguf_file

    @property
    def source(self) -> dict[str, str]:
        """What every ``from_pretrained`` of transformers is told besides the folder."""
        return {} if self.gguf_file is None else {"gguf_file": self.gguf_file}


def locate_model(name: str, revision: str | None = None, *, trust_remote_code: bool = False) -> ModelFiles:
    """Find the model and have its configuration and tokenizer at hand; the weights are not downloaded.

    Raises:
        UsageError: no such model, no access, no connection.
    """
    if name.startswith("builtin:"):
        return _builtin(name, revision)
    folder = Path(name).expanduser()
    if folder.suffix.lower() == ".gguf":
        return _gguf(folder, name, revision)
    if folder.is_dir():
        _refuse_revision(name, revision)
        if not (folder / "config.json").is_file():
            raise UsageError(f"model.name={name!r} is a folder without config.json: not a saved model")
        return ModelFiles(name=folder.resolve().name, folder=folder.resolve(), revision=None, from_hub=False)
    if folder.is_file():
        raise UsageError(
            f"model.name={name!r} is a file; expected the folder of a saved model (with config.json), or a "
            ".gguf file"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"model.name={name!r}: there is no such folder")
    patterns = [*_SMALL_FILES, *(["*.py"] if trust_remote_code else [])]
    folder = download_model_files(name, revision, patterns)
    if not (folder / "config.json").is_file():
        raise UsageError(f"model {name!r} has no config.json on the hub: not a transformers model")
    return ModelFiles(name=name, folder=folder, revision=folder.name, from_hub=True)


def fetch_weights(files: ModelFiles) -> list[Path]:
    """The model's weight files (safetensors, or one GGUF), downloaded if need be.

    Raises:
        UsageError: there are none, or a file is damaged. Pickled weights are never loaded.
    """
    if files.gguf_file is not None:
        return [files.place]
    if files.from_hub:
        download_model_files(files.name, files.revision, _weight_names(files.folder))
    paths = [files.folder / name for name in _weight_names(files.folder)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UsageError(
            f"model {files.name!r} has no safetensors weights (missing: {', '.join(missing[:3])}). "
            "Pickled weights are not loaded, because they can run code; convert the model with "
            "save_pretrained(...), or choose another revision"
        )
    for path in paths:
        _check_safetensors(path)
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


def _gguf(path: Path, name: str, revision: str | None) -> ModelFiles:
    _refuse_revision(name, revision)
    if not path.is_file():
        raise UsageError(f"model.name={name!r}: there is no such file here; download the .gguf file first")
    needed = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if needed:
        raise UsageError(
            f"model.name={name!r} is a GGUF file; to read it, transformers needs "
            f"'pip install {' '.join(needed)}'"
        )
    path = path.resolve()
    return ModelFiles(name=path.name, folder=path.parent, revision=None, from_hub=False, gguf_file=path.name)


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


def _check_safetensors(path: Path) -> None:
    """Compare the file's header with its size; reads no weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass
    except SafetensorError as error:
        raise UsageError(f"{path} is damaged or incomplete ({error}): copy or download it again") from None
