"""Everything about a harvest that can be settled, and refused, before the weights are loaded."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.devices import choose_device
from .config import HarvestConfig
from .devices import resolve_dtype
from .identity import Existing, check_extends, check_same, look_at_output, pinned
from .model import LanguageModel, check_model, read_model_settings
from .model_files import ModelFiles, fetch_weights, locate_model, weights_sha256
from .packing import PackingRule
from .sources import TextSource, open_source
from .tokenizer import load_tokenizer, packing_rule, tokenizer_sha256


@dataclass(frozen=True)
class Plan:
    """A harvest with every 'auto' settled but the batch size."""

    config: HarvestConfig
    path: Path
    existing: Existing | None
    hooks: list[str]
    files: ModelFiles
    dtype: str
    device: torch.device
    tokenizer: Any
    rule: PackingRule
    source: TextSource
    identity: dict[str, Any]

    @property
    def full_sequences(self) -> int:
        """Sequences that the tokens asked for fill."""
        return -(-self.config.num_tokens // self.rule.context)

    def load_model(self) -> LanguageModel:
        """The model, with its weights."""
        return LanguageModel.from_files(
            self.files,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.config.model.trust_remote_code,
            sha256=self.identity["model"]["weights_sha256"],
            tokenizer=self.tokenizer,
        )


def make_plan(
    config: HarvestConfig,
    path: Path,
    base: Existing | None = None,
    finished: tuple[Path | str, Existing] | None = None,
) -> Plan:
    """Look at the output, the text and the model's configuration; cheap checks first, then the weights' hash.

    ``base`` is a finished cache to be extended, ``finished`` one that is where this one would go, when
    that is not ``path``.

    Raises:
        UsageError: anything that makes this harvest impossible as configured.
    """
    place, existing = finished or (path, look_at_output(path))
    known = existing or base
    before = pinned(known, "model")
    device = choose_device(config.device)
    revision = config.model.revision
    if revision is None and before.get("name") == config.model.name:
        revision = before.get("revision")
    remote_code = config.model.trust_remote_code
    files = locate_model(config.model.name, revision, trust_remote_code=remote_code)
    settings = read_model_settings(files, config.model)
    check_model(files, settings, config.hooks, config.tokens.context)
    tokenizer = load_tokenizer(files.folder, trust_remote_code=remote_code)
    rule = packing_rule(config.tokens, tokenizer)
    source = open_source(config.text, pinned(known, "text"))
    dtype: str = config.model.dtype
    if dtype == "auto" and before.get("name") == files.name and "dtype" in before:
        dtype = before["dtype"]
    dtype = resolve_dtype(dtype, device, settings.get_text_config().hidden_size)
    identity = {
        "model": {
            "name": files.name,
            "revision": files.revision,
            "weights_sha256": weights_sha256(fetch_weights(files)),
            "class": _class_name(settings),
            "dtype": dtype,
        },
        "tokenizer": {"sha256": tokenizer_sha256(files.folder, tokenizer)},
        "text": source.identity(),
        "packing": rule.identity(),
        "selection": config.selection.model_dump(mode="json"),
        "num_tokens": config.num_tokens,
    }
    if existing is not None:
        check_same(existing, identity, config, place)
    if base is not None:
        check_extends(base, identity, config)
    return Plan(
        config=config,
        path=path,
        existing=existing,
        hooks=sorted(config.hooks, key=_natural),
        files=files,
        dtype=dtype,
        device=device,
        tokenizer=tokenizer,
        rule=rule,
        source=source,
        identity=identity,
    )


def _class_name(settings: Any) -> str:
    """The model's class as its config.json states it, else its type."""
    architectures = getattr(settings, "architectures", None)
    return str(architectures[0] if architectures else settings.model_type)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 'resid_post.2' before 'resid_post.10': one order of hooks, however they were listed."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
