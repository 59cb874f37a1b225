"""Everything about a harvest that can be settled, and refused, before the weights are loaded."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..common.devices import choose_device
from ..common.errors import UsageError
from ..common.hook_names import by_number
from ..common.outputs import check_folder_output, check_no_file
from ..distributed.launch import world
from ..store.identity import fingerprint, whole_identity
from ..store.keys import is_heldout
from .config import HarvestConfig
from .identity import Existing, check_extends, check_same, read_existing, settled_facts
from .model.adapter import AdapterFiles, locate_adapter
from .model.conditions import recorded_attention, recorded_device
from .model.config import AdapterConfig
from .model.files import ModelFiles, fetch_weights, locate_model, weights_sha256
from .model.hook_points import expand_hooks
from .model.language_model import LanguageModel
from .model.loading import Loading, check_model, num_layers_of, read_model_settings
from .model.numerics import resolve_dtype
from .model.tokenizer import load_tokenizer, tokenizer_sha256
from .text.config import needs_no_special_tokens
from .text.packing import PackingRule
from .text.sources import ModelSide, TextSource, open_source
from .text.tokenizing import packing_rule

HELDOUT_FRACTIONS = (0.01, 0.02, 0.05, 0.1)  # what 'auto' tries, until a document is held out


@dataclass(frozen=True)
class HarvestPlan:
    """A harvest with every 'auto' settled but the batch size."""

    config: HarvestConfig
    path: Path
    existing: Existing | None
    hooks: list[str]
    files: ModelFiles
    dtype: str
    device: torch.device
    how: Loading
    tokenizer: Any
    rule: PackingRule
    source: TextSource | None  # in a process that reads text
    identity: dict[str, Any]
    heldout_fraction: float

    def settled(self) -> dict[str, Any]:
        """What the other processes of the run take over, by :func:`follow_plan`. Plain JSON."""
        existing = self.existing
        return {
            "finished": existing is not None and existing.manifest is not None,
            "existing": None if existing is None else [existing.identity, existing.progress],
            "hooks": self.hooks,
            "dtype": self.dtype,
            "device": self.device.type,
            "attention": self.how.attention,
            "rule": asdict(self.rule),
            "identity": self.identity,
            "heldout_fraction": self.heldout_fraction,
        }

    @property
    def full_sequences(self) -> int:
        """Sequences that the tokens asked for fill."""
        return -(-self.config.num_tokens // self.rule.context)

    def fingerprint(self, widths: Mapping[str, int]) -> str:
        """Fingerprint of the cache whose hooks have these widths."""
        config, context = self.config, self.rule.context
        return fingerprint(
            whole_identity(self.identity, widths, context, config.seed, self.heldout_fraction, config.storage)
        )

    def load_model(self) -> LanguageModel:
        """The model, with its weights."""
        return LanguageModel.from_files(
            self.files,
            dtype=self.dtype,
            device=self.device,
            trust_remote_code=self.config.model.trust_remote_code,
            sha256=self.identity["model"]["weights_sha256"],
            tokenizer=self.tokenizer,
            how=self.how,
        )


def make_plan(
    config: HarvestConfig,
    path: Path,
    base: Existing | None = None,
    finished: tuple[Path | str, Existing] | None = None,
) -> HarvestPlan:
    """Look at the output, the text and the model's configuration; cheap checks first, then the weights' hash.

    ``base`` is a finished cache to be extended, ``finished`` one that is where this one would go, when
    that is not ``path``.

    Raises:
        UsageError: anything that makes this harvest impossible as configured.
    """
    check_no_file(path)
    place, existing = finished or (path, read_existing(path))
    if existing is None or existing.manifest is None:
        check_folder_output(path)
    known = existing or base
    before = settled_facts(known, "model")
    device = settle_device(config.device, existing)
    revision = config.model.revision
    if revision is None and before.get("name") == config.model.name:
        revision = before.get("revision")
    remote_code = config.model.trust_remote_code
    files = locate_model(config.model.name, revision, trust_remote_code=remote_code)
    settings = read_model_settings(files, trust_remote_code=remote_code)
    hooks = expand_hooks(config.hooks, num_layers_of(settings))
    config = config.model_copy(update={"hooks": hooks})
    check_model(files, settings, hooks, config.tokens.context)
    tokenizer = load_tokenizer(files, trust_remote_code=remote_code)
    rule = packing_rule(config.tokens, tokenizer, as_it_is=needs_no_special_tokens(config.text))
    adapter = _locate_adapter(config, before)
    known_tokenizer = tokenizer_sha256(files, tokenizer)
    side = ModelSide(tokenizer, known_tokenizer, int(settings.get_text_config().vocab_size), rule)
    source = open_source(config.text, settled_facts(known, "text"), model=side, seed=config.seed)
    heldout_fraction = resolve_heldout(config, source, known)
    dtype: str = config.model.dtype
    if dtype == "auto" and before.get("name") == files.name and "dtype" in before:
        dtype = before["dtype"]
    dtype = resolve_dtype(dtype, device, settings.get_text_config().hidden_size)
    quantization = config.model.quantization
    identity = {
        "model": {
            "name": files.name,
            "revision": files.revision,
            "weights_sha256": weights_sha256(fetch_weights(files)),
            "class": _class_name(settings),
            "dtype": dtype,
            **({} if quantization is None else {"quantization": quantization}),
            **({} if adapter is None else {"adapter": adapter.identity()}),
        },
        "tokenizer": {"sha256": known_tokenizer},
        "text": source.identity(),
        "packing": rule.identity(),
        "selection": config.selection.model_dump(mode="json"),
        "num_tokens": config.num_tokens,
    }
    if existing is not None:
        check_same(existing, identity, config, heldout_fraction, place)
    if base is not None:
        check_extends(base, identity, config, heldout_fraction)
    return HarvestPlan(
        config=config,
        path=path,
        existing=existing,
        hooks=sorted(hooks, key=by_number),
        files=files,
        dtype=dtype,
        device=device,
        how=Loading(
            device_map=config.device_map,
            quantization=quantization,
            attention=None if existing is None else recorded_attention(existing.progress),
            adapter=adapter,
        ),
        tokenizer=tokenizer,
        rule=rule,
        source=source,
        identity=identity,
        heldout_fraction=heldout_fraction,
    )


def follow_plan(config: HarvestConfig, path: Path, settled: Mapping[str, Any]) -> HarvestPlan:
    """The plan of a process that works together with the one whose plan has settled this; no text is read.

    Raises:
        UsageError: the model or the device is not the same here.
    """
    existing = settled["existing"]
    known = None if existing is None else Existing(existing[0], None, existing[1])
    model = settled["identity"]["model"]
    remote_code = config.model.trust_remote_code
    files = locate_model(config.model.name, model["revision"], trust_remote_code=remote_code)
    if world().local_rank == 0 and weights_sha256(fetch_weights(files)) != model["weights_sha256"]:
        raise UsageError(f"{files.place} holds other weights on this machine than on that of process 0")
    adapter = _locate_adapter(config, model)
    if adapter is not None and adapter.sha256 != model["adapter"]["sha256"]:
        raise UsageError(f"{adapter.folder} holds another adapter on this machine than on that of process 0")
    return HarvestPlan(
        config=config,
        path=path,
        existing=known,
        hooks=settled["hooks"],
        files=files,
        dtype=settled["dtype"],
        device=_own_device(settled["device"] if config.device == "auto" else config.device),
        how=Loading(
            device_map=config.device_map,
            quantization=config.model.quantization,
            attention=settled["attention"],
            adapter=adapter,
        ),
        tokenizer=load_tokenizer(files, trust_remote_code=remote_code),
        rule=PackingRule(**settled["rule"]),
        source=None,
        identity=settled["identity"],
        heldout_fraction=settled["heldout_fraction"],
    )


def _locate_adapter(config: HarvestConfig, known: Mapping[str, Any]) -> AdapterFiles | None:
    """The configured adapter; a revision left open stays that of ``known``, the model of a former run."""
    adapter, before = config.model.adapter, known.get("adapter")
    if adapter is None:
        return None
    if adapter.revision is None and isinstance(before, Mapping) and before.get("name") == adapter.name:
        adapter = AdapterConfig(name=adapter.name, revision=before.get("revision"))
    return locate_adapter(adapter)


def settle_device(name: str, existing: Existing | None) -> torch.device:
    """The configured device, or the interrupted run's, or the fastest one there is.

    Raises:
        UsageError: the configured device is not here.
    """
    former = None if existing is None else recorded_device(existing.progress)
    if name == "auto" and former is not None:
        try:
            return _own_device(former)
        except UsageError:  # to be named with everything else that differs
            pass
    return _own_device(name)


def _own_device(name: str) -> torch.device:
    """Choose the device; each of several processes on a machine gets a GPU of its own."""
    return choose_device(name, local_rank=world().number_of_gpu)


def resolve_heldout(config: HarvestConfig, source: TextSource, known: Existing | None) -> float:
    """The share of documents to hold out: as configured, else as a former run settled it, else what fits.

    Which documents are held out is a function of (seed, number), so it is known where their number is.

    Raises:
        UsageError: no document, or every one, would be left to train on.
    """
    fraction = config.heldout_fraction
    if fraction == "auto" and known is not None:
        return float(known.identity.get("heldout_fraction", 0.0))
    documents = None if fraction == 0 else source.num_documents()
    if documents is None:
        return HELDOUT_FRACTIONS[0] if fraction == "auto" else fraction
    held_out = {
        share: int(is_heldout(config.seed, np.arange(documents), share).sum())
        for share in (HELDOUT_FRACTIONS if fraction == "auto" else (fraction,))
    }
    if fraction == "auto":
        fitting = [share for share, count in held_out.items() if 0 < count < documents]
        if not fitting:
            print(
                f"note: the text has {documents} document{'s' if documents > 1 else ''}, too few to hold "
                "some out for evaluation; split it into more, or set heldout_fraction",
                file=sys.stderr,
            )
        return fitting[0] if fitting else 0.0
    if documents == 1 or held_out[fraction] == documents:
        which = "one document" if documents == 1 else f"{documents} documents, and all of them"
        raise UsageError(
            f"heldout_fraction={fraction:g}, but the text is {which}, held out whole or not at all: split "
            "the text into more documents (a file each, or lines of a .jsonl file), or set heldout_fraction=0"
        )
    return fraction


def _class_name(settings: Any) -> str:
    """The model's class as its config.json states it, else its type."""
    architectures = getattr(settings, "architectures", None)
    return str(architectures[0] if architectures else settings.model_type)
