"""A trained SAE: its weights, how it encodes and decodes, and which run it comes from.

Its folder holds ``cfg.json`` and ``weights.safetensors``; loading never unpickles anything.
Legend: B rows, D width of what is encoded, O of what is reconstructed (D unless it is a transcoder), F
latents, P pairs.
"""

import hashlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import (
    NonNegativeFloat,
    PositiveInt,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor, nn

from ..common.errors import UsageError
from ..common.frozen import FrozenModel
from ..common.memory import check_memory
from ..common.validation import validate
from ..store.durable import write_bytes
from ..store.normalization import RowState
from ..store.untrusted_files import read_object
from .backends.plain.products import matmul
from .backends.threads import torch_on_one_thread
from .engine.reading import input_bias
from .latent_shards import LatentShards
from .layer_blocks import LayerBlocks
from .pairs import Pairs
from .sae_hooks import HookRows, SAETarget, check_hooks, make_normalizer
from .shared_tensor_file import write_tensors
from .tensor_file import TensorInfo, check_header, read_tensors
from .variants import VARIANTS, AnyVariant
from .variants.base.rows import Rows
from .variants.base.variant import Plan

FORMAT_VERSION = 1
FORMAT_OF_SEVERAL_HOOKS = 2  # of transcoders and crosscoders, cross-layer or not
CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "weights.safetensors"
SAE_FOLDER = "sae"  # of a variant, in a run
THRESHOLD = "threshold"
ENCODE_ROWS = 16384  # rows encoded at a time by forward()
Space = Literal["normalized", "raw"]


class SAEConfig(FrozenModel):
    """The content of ``cfg.json``. ``variant`` holds all settings of the kind; the others are for reading."""

    format_version: int = FORMAT_VERSION
    kind: str
    name: str
    d_model: PositiveInt
    num_latents: PositiveInt
    k: NonNegativeFloat | None  # number of active latents per row set in training
    inference: str  # "topk", "threshold" (pre-activation > tensor "threshold", [] or [F]), or the kind's own
    hook: str  # of what it encodes; the names of a crosscoder's hooks with + between them
    normalization: dict[str, Any]  # of store.normalization.Normalizer
    variant: SerializeAsAny[AnyVariant]
    cache: dict[str, Any]  # fingerprint, model, ... of the rows it was trained on
    training: dict[str, Any]  # steps, rows, seed, learning rate, ...
    hooks: tuple[HookRows, ...] | None = None  # of a crosscoder, side by side in its rows
    target: SAETarget | None = None  # what a transcoder predicts
    targets: tuple[SAETarget, ...] | None = None  # of a cross-layer transcoder, one for each of its hooks

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Files of autoencoders stay as they were before there were other kinds."""
        values: dict[str, Any] = serialize(self)
        return {k: v for k, v in values.items() if k not in ("hooks", "target", "targets") or v is not None}

    @property
    def d_decoded(self) -> int:
        """O, the width of what is reconstructed."""
        return sum(part.d_model for part in self.predicted) or self.d_model

    @property
    def predicted(self) -> tuple[SAETarget, ...]:
        """What a transcoder predicts: one hook, or one for each layer; nothing for other SAEs."""
        return self.targets or (() if self.target is None else (self.target,))

    @property
    def num_layers(self) -> int:
        """L, the layers of a cross-layer transcoder; 1 for other SAEs."""
        return 1 if self.targets is None else len(self.targets)

    @property
    def shape(self) -> str:
        """What kind of function it is, for messages."""
        if self.targets is not None:
            return "cross-layer transcoder"
        return "transcoder" if self.target else "autoencoder" if self.hooks is None else "crosscoder"


class SAE(nn.Module):
    """A sparse autoencoder: x ≈ codes @ W_dec + b_dec.

    A transcoder (``cfg.target``) predicts rows of another hook from x: codes @ W_dec + b_dec, and with a skip
    connection + W_skip (x - b_in). A crosscoder (``cfg.hooks``) is an autoencoder of rows that hold those of
    several hooks side by side (:func:`.sae_hooks.join`, :func:`.sae_hooks.split_by_hook`). A cross-layer
    transcoder (``cfg.targets``) takes the rows of L layers side by side and predicts L targets side by side;
    its latents come in L blocks, of which each reads one layer (:mod:`.layer_blocks`).

    Attributes:
        W_enc, W_dec: float32 [F, D] (of a cross-layer transcoder [F, D / L]) and [F, O]; b_enc: [F]; b_dec:
            [O]; threshold: [], [F] or None. The variant's own tensors are beside them, and of a transcoder
            b_in [D], maybe W_skip [O, D].
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    b_in: Tensor  # only of a transcoder,
    W_skip: Tensor  # and of one with a skip connection
    threshold: Tensor | None  # [] or [F]; None when the inference rule has none

    def __init__(
        self, cfg: SAEConfig, tensors: Mapping[str, Tensor], shards: LatentShards | None = None
    ) -> None:
        """``shards``: the latents that ``tensors`` have, if other processes hold the others.

        Then every process must call the same methods, and gets the codes of its own latents.
        """
        super().__init__()
        self.cfg = cfg
        self.shards = shards or LatentShards.divide(cfg.num_latents)
        self.normalizer: Any = make_normalizer(cfg)  # Normalizer, or of a crosscoder JoinedNormalizer
        for name, shape in _shapes(cfg, self.shards.count).items():
            got = tuple(tensors[name].shape) if name in tensors else None
            if got != shape:
                raise UsageError(f"SAE {cfg.name}: tensor {name} should have shape {shape}, got {got}")
        for name, tensor in {"threshold": None, **tensors}.items():
            self.register_buffer(name, tensor)

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        input: Space = "normalized",  # noqa: A002 - the public name
        as_trained: bool = False,
        batch_number: int = 0,
        sparse: bool | None = None,
    ) -> Tensor:
        """Codes of rows ``x`` [B, D] as a dense tensor, float32 [B, F].

        Args:
            input: ``normalized`` when x is as the cache hands it out under ``cfg.normalization``; ``raw``
                when x comes from the model: the SAE then normalizes it.
            as_trained: use the rule of training, which looks at the whole batch for batch-wide kinds.
            batch_number: with ``as_trained``, the 0-based number of this batch among those encoded: for rules
                that carry fractions of a row over (``zipf.rounding: carry``) or draw random numbers.
            sparse: deprecated; call :meth:`encode_sparse` instead of ``sparse=True``.

        Raises:
            UsageError: rows of another width, or a tensor that does not hold floating-point numbers.
        """
        pairs = self.encode_sparse(x, input=input, as_trained=as_trained, batch_number=batch_number)
        if sparse is not None:
            advice = "call encode_sparse(x) for pairs" if sparse else "leave it out: encode(x) is dense"
            warnings.warn(f"SAE.encode(sparse={sparse}) is deprecated: {advice}", DeprecationWarning, 2)
        return pairs if sparse else pairs.to_dense()  # type: ignore[return-value]  # of the deprecated flag

    @torch.no_grad()
    def encode_sparse(
        self,
        x: Tensor,
        *,
        input: Space = "normalized",  # noqa: A002
        as_trained: bool = False,
        batch_number: int = 0,
    ) -> Pairs:
        """Codes of rows ``x`` [B, D] as :class:`Pairs` (row, latent, value); see :meth:`encode`."""
        return self._encode(self._normalized(x, input)[0], as_trained, batch_number)

    @torch.no_grad()
    def decode(self, codes: Tensor | Pairs) -> Tensor:
        """Decode codes (dense [B, F] or pairs) into normalized rows [B, O], without a skip connection."""
        if isinstance(codes, Tensor):
            return codes @ self.W_dec + self.b_dec
        return self.shards.decode(codes, self.W_dec, self.b_dec)

    @torch.no_grad()
    def predict(self, codes: Tensor | Pairs, x: Tensor) -> Tensor:
        """What the SAE makes of normalized rows ``x`` [B, D] with these codes: normalized rows [B, O]."""
        decoded = self.decode(codes)
        if self.cfg.target is not None and self.cfg.target.skip:
            decoded += matmul(x.float() - input_bias(dict(self.named_buffers())), self.W_skip.T)
        return decoded

    @torch.no_grad()
    def forward(self, x: Tensor, *, input: Space = "normalized") -> Tensor:  # noqa: A002
        """The reconstruction of ``x`` [..., D] in the space x came in: raw in, raw out. Of a transcoder the
        prediction of its target, [..., O].

        Raises:
            UsageError: rows of another width, or a tensor that does not hold floating-point numbers.
        """
        self._check(x)
        flat = x.reshape(-1, self.cfg.d_model)
        parts = [self._reconstruct(part, input) for part in torch.split(flat, ENCODE_ROWS)]
        return torch.cat(parts).reshape(*x.shape[:-1], self.cfg.d_decoded)

    def attach(
        self,
        model: nn.Module,
        *,
        steer: Mapping[int, float] | None = None,
        add: Mapping[int, float] | None = None,
        splice: bool | None = None,
        hook: str | None = None,
    ) -> AbstractContextManager[nn.Module]:
        """A context in which a Hugging Face ``model`` runs through this SAE: :func:`..steering.attach`."""
        from ..steering import attach  # above this package: it knows of hooks in models too

        return attach(self, model, steer=steer, add=add, splice=splice, hook=hook)

    def _reconstruct(self, x: Tensor, space: Space) -> Tensor:
        normalized, removed = self._normalized(x, space)
        reconstruction = self.predict(self._encode(normalized, as_trained=False), normalized)
        if space == "raw":
            reconstruction = self.to_raw(reconstruction, removed)
        return reconstruction.to(x.dtype)

    def to_raw(self, reconstruction: Tensor, removed: Any) -> Tensor:
        """Normalized reconstructions [B, O] as raw rows, given what normalizing the rows x removed."""
        if not self.cfg.predicted:
            raw: Tensor = self.normalizer.invert(reconstruction, removed)
            return raw
        normalizers = [part.normalizer for part in self.cfg.predicted]
        parts = torch.split(reconstruction, [n.d_model for n in normalizers], dim=-1)
        inverted = [
            normalizer.invert(part, RowState(factor=normalizer.factor or 1.0))
            for normalizer, part in zip(normalizers, parts, strict=True)
        ]
        return inverted[0] if len(inverted) == 1 else torch.cat(inverted, dim=-1)

    def _normalized(self, x: Tensor, space: Space) -> tuple[Tensor, Any]:
        self._check(x)
        if x.dim() != 2:
            raise UsageError(f"SAE {self.cfg.name} expects [rows, {self.cfg.d_model}], got {tuple(x.shape)}")
        if space == "raw":
            normalized: tuple[Tensor, Any] = self.normalizer.apply(x.float())
            return normalized
        if space == "normalized":
            return x.float(), None
        raise UsageError(f"input must be 'normalized' or 'raw', got {space!r}")

    def _check(self, x: Tensor) -> None:
        if x.dim() == 0 or x.shape[-1] != self.cfg.d_model:
            raise UsageError(f"SAE {self.cfg.name} expects [rows, {self.cfg.d_model}], got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise UsageError(
                f"SAE {self.cfg.name} expects rows of floating-point numbers, got {x.dtype}: hand in "
                "activations, or convert them with x.float()"
            )

    @torch_on_one_thread()
    def _encode(self, x: Tensor, as_trained: bool, batch_number: int = 0) -> Pairs:
        tensors = dict(self.named_buffers())
        rows = Rows(
            x_centered=x - input_bias(tensors),
            parameters=tensors,
            state=tensors,
            number=batch_number,
            latent_shards=self.shards,
        )
        return self.cfg.variant.encode(rows, as_trained=as_trained)

    def weights_sha256(self) -> str:
        """The sha256 of names, types, shapes and bytes of all tensors, in hexadecimal."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.named_buffers()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            numbers: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            digest.update(numbers)
        return digest.hexdigest()

    def save(self, folder: str | Path) -> str:
        """Write the weights, then the config, each atomically. Equal SAEs give equal bytes.

        Returns:
            The sha256 of the file of the weights.
        """
        folder = Path(folder)
        checksum = write_tensors(folder / WEIGHTS_FILE, dict(self.named_buffers()), self.shards)
        text = self.cfg.model_dump_json(indent=2) + "\n"
        self.shards.group.on_first(lambda: write_bytes(folder / CONFIG_FILE, text.encode("utf-8")))
        return checksum


def find_saes(place: str | Path) -> list[Path]:
    """The SAE folders that a folder stands for: itself, a variant's ``sae``, or every one of a run.

    The SAE at a URL (``hf://ORG/NAME[@REVISION][/FOLDER]``, or of a bucket) is downloaded once.

    Raises:
        UsageError: it is none of these.
    """
    from .foreign.formats import FORMATS, find_format  # which builds SAEs
    from .foreign.hub import find_folder

    folder = find_folder(place)
    if find_format(folder) is not None:
        return [folder]
    for pattern in ("", f"{SAE_FOLDER}/", f"*/{SAE_FOLDER}/"):
        if found := sorted(path.parent for path in folder.glob(pattern + CONFIG_FILE)):
            return found
    what = f"it has no {CONFIG_FILE}" if folder.is_dir() else "there is no such folder"
    raise UsageError(
        f"no SAE in {folder}: {what}; expected an SAE folder (with {CONFIG_FILE} and {WEIGHTS_FILE}), a "
        f"run folder (with NAME/{SAE_FOLDER}/{CONFIG_FILE}), or a folder of {', '.join(FORMATS)}"
    )


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> SAE:
    """The SAE in ``folder``: a run's ``<variant>/sae``, a checkpoint, or a run folder with one SAE in it.

    Folders of SAELens, dictionary_learning, sparsify, Gemma Scope and Llama Scope are loaded as well
    (:mod:`.foreign`). A URL (``hf://ORG/NAME[@REVISION][/FOLDER]``, or of a bucket) is downloaded once. The
    files may come from anybody: no tensor is read before its type and shape were found to be right.

    Raises:
        UsageError: no SAE there or several, an unknown kind, a newer format, a config that contradicts
            itself, or weights that contradict the config, are not finite, or do not fit into memory.
    """
    found = find_saes(folder)
    if len(found) > 1:
        raise UsageError(f"{folder} holds {len(found)} SAEs, name one of them: {', '.join(map(str, found))}")
    folder = found[0]
    weights = folder / WEIGHTS_FILE
    if not weights.exists():
        from .foreign.formats import load_foreign

        if (foreign := load_foreign(folder, device)) is not None:
            return foreign
        raise UsageError(f"no SAE in {folder}: expected {CONFIG_FILE} and {WEIGHTS_FILE} there")
    try:
        cfg = _read_config(folder)
        expected = _expected_tensors(cfg)
        check_header(weights, expected)
        check_memory(weights.stat().st_size, torch.device(device), f"{weights}", "use another machine")
        tensors = read_tensors(weights, device)
    except (UsageError, FileNotFoundError) as error:
        raise UsageError(f"{folder} does not hold a readable SAE: {error}") from None
    for name, tensor in tensors.items():
        check_values(f"{weights}: tensor {name}", tensor, cfg.num_latents, unbounded=name == THRESHOLD)
    blocks = LayerBlocks(cfg.num_layers, LatentShards.divide(cfg.num_latents))
    if any(bool(part.any()) for part in blocks.unwritten(tensors["W_dec"])):
        raise UsageError(f"{weights}: a latent writes to a layer before its own: its weights are damaged")
    return SAE(cfg, tensors)


def _read_config(folder: Path) -> SAEConfig:
    path = folder / CONFIG_FILE
    values = read_object(path, "copy the SAE again from where it was trained")
    version = values.get("format_version")
    if version not in (FORMAT_VERSION, FORMAT_OF_SEVERAL_HOOKS):
        raise UsageError(
            f"SAE format {version!r:.80}; this version of saecache reads {FORMAT_VERSION} and "
            f"{FORMAT_OF_SEVERAL_HOOKS}"
        )
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in VARIANTS:
        raise UsageError(
            f"SAE of kind {kind!r:.80}, which this version of saecache does not know; it knows "
            f"{', '.join(VARIANTS)}. The kind's file belongs into train/variants/"
        )
    cfg = validate(SAEConfig, values, str(path))
    for name in ("name", "hook"):  # are shown in a terminal
        if not getattr(cfg, name).isprintable():
            raise UsageError(
                f"{path}: {name} holds characters that cannot be shown: {getattr(cfg, name)!r:.80}"
            )
    try:
        check_hooks(cfg)
    except UsageError as error:
        raise UsageError(f"{path} contradicts itself: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"{path}: normalization cannot be read ({error!r:.80})") from None
    for name, got, wanted in (
        ("kind", cfg.kind, cfg.variant.kind),
        ("inference", cfg.inference, cfg.variant.inference),
        ("normalization.d_model", cfg.normalization.get("d_model"), cfg.d_model),
    ):
        if got != wanted:
            raise UsageError(
                f"{path} contradicts itself: {name} is {got!r:.80}, and the rest says {wanted!r}"
            )
    for name in ("k", "num_latents"):
        got = getattr(cfg.variant, name, None)
        if got is not None and got > cfg.num_latents:
            raise UsageError(f"{path} contradicts itself: {name}={got} of {cfg.num_latents} latents")
    return cfg


def _expected_tensors(cfg: SAEConfig) -> dict[str, TensorInfo | tuple[TensorInfo, ...]]:
    """The types and shapes of an SAE's tensors; nothing is allocated for them."""
    plan = Plan(d_model=cfg.d_model, num_latents=cfg.num_latents, batch_rows=1, num_steps=1)
    expected: dict[str, TensorInfo | tuple[TensorInfo, ...]] = {
        name: TensorInfo(torch.float32, shape) for name, shape in _shapes(cfg, cfg.num_latents).items()
    }
    with torch.device("meta"):
        own = {
            **cfg.variant.extra_parameters(plan),
            **cfg.variant.inference_tensors(cfg.variant.initial_state(plan)),
        }
    expected |= {name: TensorInfo.of(tensor) for name, tensor in own.items()}
    if THRESHOLD in expected:
        each = TensorInfo(torch.float32, (cfg.num_latents,))
        expected[THRESHOLD] = (TensorInfo(torch.float32, ()), each)
    return expected


def _shapes(cfg: SAEConfig, num_latents: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that every SAE of this config has, whatever its kind."""
    F, D, O = num_latents, cfg.d_model, cfg.d_decoded  # noqa: E741 - as in the legend
    encoder = (F, D // cfg.num_layers)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": encoder, "W_dec": (F, O), "b_enc": (F,), "b_dec": (O,)}
    if cfg.predicted:
        shapes["b_in"] = (D,)
        if cfg.predicted[0].skip:
            shapes["W_skip"] = (O, D)
    return shapes


def check_values(what: str, tensor: Tensor, num_latents: int, *, unbounded: bool) -> None:
    """Refuse floats that are not finite (a threshold may be infinity: never active) and indices beyond F."""
    if tensor.numel() == 0:
        return
    least, most = (float(extreme) for extreme in torch.aminmax(tensor))  # NaN if there is one
    if tensor.is_floating_point():
        if not (isfinite(least) or (unbounded and least == inf)) or not (isfinite(most) or unbounded):
            raise UsageError(f"{what} is not finite: its weights are damaged")
    elif not 0 <= least <= most < num_latents:
        raise UsageError(f"{what} should number the {num_latents} latents, got {least:g} to {most:g}")
