"""PEFT adapters (LoRA and the like): their files, what identifies them, and how they get into a model."""

import hashlib
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ...common.errors import UsageError
from ...common.lookups import expanded, is_folder
from ...common.regular_files import read_regular
from ...store.untrusted_json import check_depth, parse_json
from ...store.untrusted_model import files_explained
from ..hub import download_model_files
from .config import AdapterConfig
from .files import check_safetensors

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MOST_CONFIG_BYTES = 1 << 22
_PROMPT_KINDS = (
    "PROMPT_TUNING",
    "P_TUNING",
    "PREFIX_TUNING",
    "MULTITASK_PROMPT_TUNING",
    "CPT",
    "ADAPTION_PROMPT",
)


@dataclass(frozen=True)
class AdapterFiles:
    """Where an adapter is. ``name`` is the hub name, or the last part of a local path; ``revision`` the hub
    commit, None for a local folder. ``sha256`` is that of its configuration and its weights."""

    name: str
    folder: Path
    revision: str | None
    sha256: str

    def identity(self) -> dict[str, Any]:
        """What of it makes two models the same. Plain JSON."""
        return {"name": self.name, "revision": self.revision, "sha256": self.sha256}


def locate_adapter(config: AdapterConfig) -> AdapterFiles:
    """Find the adapter and check its files, before any model is loaded.

    Raises:
        UsageError: peft is not installed, or there is no adapter that can be used.
    """
    if find_spec("peft") is None:
        raise UsageError(f"model.adapter={config.name!r} needs peft: pip install 'saecache[peft]'")
    folder, revision = expanded(config.name), None
    if is_folder(folder):
        if config.revision is not None:
            raise UsageError(
                f"model.adapter.revision={config.revision!r} has no effect on {config.name!r}, which is a "
                "folder: leave it out"
            )
        folder = folder.resolve()
        name = folder.name
    elif config.name.startswith((".", "/", "~")) or config.name.count("/") > 1:
        raise UsageError(f"model.adapter.name={config.name!r}: there is no such folder")
    else:
        folder = download_model_files(config.name, config.revision, [_CONFIG, _WEIGHTS])
        name, revision = config.name, folder.name
    return AdapterFiles(name, folder, revision, _check_files(config.name, folder))


def _check_files(name: str, folder: Path) -> str:
    """sha256 of the adapter's files.

    Raises:
        UsageError: one is missing or damaged, or the adapter is of a kind that changes the text instead.
    """
    for file in (_CONFIG, _WEIGHTS):
        if not (folder / file).is_file():
            raise UsageError(
                f"adapter {name!r} has no {file} in {folder}; expected what save_pretrained(...) of peft "
                "writes. Pickled weights (.bin) are not loaded, because they can run code"
            )
    with files_explained(f"adapter {name!r}: its {_CONFIG} cannot be used", f": {folder / _CONFIG}"):
        settings = parse_json(read_regular(folder / _CONFIG, _MOST_CONFIG_BYTES))
        check_depth(settings, _CONFIG)
        kind = settings["peft_type"]
    if kind in _PROMPT_KINDS:
        raise UsageError(
            f"adapter {name!r} is of the kind {kind}, which adds positions or prompts instead of changing "
            "weights; expected one that can be merged into them, such as LORA"
        )
    check_safetensors(folder / _WEIGHTS)
    lines = []
    for file in (_CONFIG, _WEIGHTS):
        with (folder / file).open("rb") as opened:
            lines.append(f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {file}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def put_in(model: nn.Module, adapter: AdapterFiles, *, quantized: bool) -> nn.Module:
    """The model with the adapter's changes in its weights; beside them where the weights are quantized.

    Raises:
        UsageError: the adapter does not fit the model.
    """
    from peft import PeftModel

    what = f"adapter {adapter.name!r} ({adapter.folder}) cannot be put into the model"
    with files_explained(what, ". Is it an adapter of this model?"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # peft leaves them random
        wrapped: Any = PeftModel.from_pretrained(model, str(adapter.folder), is_trainable=False)
        # Merging into quantized weights would round the sum to their few bits.
        changed: nn.Module = (
            wrapped.get_base_model() if quantized else wrapped.merge_and_unload(safe_merge=True)
        )
    return changed
