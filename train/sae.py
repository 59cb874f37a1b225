"""A trained SAE: its weights, how it encodes and decodes, and which run it comes from.

Its folder holds ``cfg.json`` and ``weights.safetensors``; loading never unpickles anything.
Legend: B rows, D model width, F latents, P pairs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import SerializeAsAny, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from ..common.errors import UsageError
from ..common.frozen import FrozenModel
from ..store.durable import write_bytes
from ..store.normalization import Normalizer
from .backends.choice import backend_of
from .backends.threads import torch_on_one_thread
from .pairs import Pairs
from .tensor_file import read_tensors, write_tensors
from .variants import VARIANTS, AnyVariant
from .variants.base.rows import Rows

FORMAT_VERSION = 1
CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "weights.safetensors"
ENCODE_ROWS = 16384  # rows encoded at a time by forward()
Space = Literal["normalized", "raw"]


class SAEConfig(FrozenModel):
    """The content of ``cfg.json``. ``variant`` holds all settings of the kind; the others are for reading."""

    format_version: int = FORMAT_VERSION
    kind: str
    name: str
    d_model: int
    num_latents: int
    k: float | None  # number of active latents per row set in training
    inference: str  # "topk", "threshold" (pre-activation > tensor "threshold", [] or [F]), or the kind's own
    hook: str
    normalization: dict[str, Any]  # of store.normalization.Normalizer
    variant: SerializeAsAny[AnyVariant]
    cache: dict[str, Any]  # fingerprint, model, ... of the rows it was trained on
    training: dict[str, Any]  # steps, rows, seed, learning rate, ...


class SAE(nn.Module):
    """A sparse autoencoder: x ≈ codes @ W_dec + b_dec.

    Attributes:
        W_enc, W_dec: float32 [F, D]; b_enc: [F]; b_dec: [D]; threshold: [], [F] or None. The variant's own
            tensors are beside them.
    """

    W_enc: Tensor
    W_dec: Tensor
    b_enc: Tensor
    b_dec: Tensor
    threshold: Tensor | None  # [] or [F]; None when the inference rule has none

    def __init__(self, cfg: SAEConfig, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.cfg = cfg
        self.normalizer = Normalizer.from_dict(cfg.normalization)
        expected = {
            "W_enc": (cfg.num_latents, cfg.d_model),
            "W_dec": (cfg.num_latents, cfg.d_model),
            "b_enc": (cfg.num_latents,),
            "b_dec": (cfg.d_model,),
        }
        for name, shape in expected.items():
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
        sparse: bool = False,
        as_trained: bool = False,
    ) -> Tensor | Pairs:
        """Encode rows ``x`` [B, D].

        Args:
            input: ``normalized`` if x is normalized as the cache does it under ``cfg.normalization``;
                ``raw`` if x comes from the model, in which case it is normalized here.
            sparse: return :class:`Pairs` instead of a dense float32 [B, F].
            as_trained: select as in training; batch-wide kinds then look at the batch as a whole.
        """
        pairs = self._encode(self._normalized(x, input)[0], as_trained)
        return pairs if sparse else pairs.to_dense()

    @torch.no_grad()
    def decode(self, codes: Tensor | Pairs) -> Tensor:
        """Decode codes (dense [B, F] or pairs) into normalized rows [B, D]."""
        if isinstance(codes, Tensor):
            return codes @ self.W_dec + self.b_dec
        return backend_of(self.W_dec).decode(codes, self.W_dec, self.b_dec)

    @torch.no_grad()
    def forward(self, x: Tensor, *, input: Space = "normalized") -> Tensor:  # noqa: A002
        """Reconstruct ``x`` [..., D]; the result is raw or normalized as ``x`` is."""
        flat = x.reshape(-1, self.cfg.d_model)
        return torch.cat([self._reconstruct(part, input) for part in torch.split(flat, ENCODE_ROWS)]).reshape(
            x.shape
        )

    def _reconstruct(self, x: Tensor, space: Space) -> Tensor:
        normalized, removed = self._normalized(x, space)
        reconstruction = self.decode(self._encode(normalized, as_trained=False))
        if space == "raw":
            reconstruction = self.normalizer.invert(reconstruction, removed)
        return reconstruction.to(x.dtype)

    def _normalized(self, x: Tensor, space: Space) -> tuple[Tensor, Any]:
        if x.dim() != 2 or x.shape[1] != self.cfg.d_model:
            raise UsageError(f"SAE {self.cfg.name} expects [rows, {self.cfg.d_model}], got {tuple(x.shape)}")
        if space == "raw":
            return self.normalizer.apply(x.float())
        if space == "normalized":
            return x.float(), None
        raise UsageError(f"input must be 'normalized' or 'raw', got {space!r}")

    @torch_on_one_thread()
    def _encode(self, x: Tensor, as_trained: bool) -> Pairs:
        tensors = dict(self.named_buffers())
        rows = Rows(x_centered=x - self.b_dec, parameters=tensors, state=tensors)
        return self.cfg.variant.encode(rows, as_trained=as_trained)

    def save(self, folder: str | Path) -> None:
        """Write the weights, then the config, each atomically. Equal SAEs give equal bytes."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS_FILE, dict(self.named_buffers()))
        write_bytes(folder / CONFIG_FILE, (self.cfg.model_dump_json(indent=2) + "\n").encode("utf-8"))


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> SAE:
    """Load the SAE in ``folder``: a run's ``<variant>/sae``, or one of its checkpoints.

    Raises:
        UsageError: the folder holds no SAE, or one of an unknown kind or another format, or the weights do
            not fit the config.
    """
    folder = Path(folder)
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        inside = folder / "sae"
        hint = f"; there is one in {inside}" if (inside / CONFIG_FILE).is_file() else ""
        raise UsageError(f"no SAE in {folder}: expected {CONFIG_FILE} and {WEIGHTS_FILE} there{hint}")
    try:
        values = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{folder}: SAE format {version}; this version of saecache reads {FORMAT_VERSION}"
            )
        if (kind := values.get("kind")) not in VARIANTS:
            raise UsageError(
                f"{folder}: SAE of kind {kind!r}, which this version of saecache does not know; it knows "
                f"{', '.join(VARIANTS)}. The kind's file belongs into train/variants/"
            )
        cfg = SAEConfig.model_validate(values)
        tensors = read_tensors(folder / WEIGHTS_FILE, device)
    except (ValidationError, json.JSONDecodeError, SafetensorError) as error:
        raise UsageError(f"{folder} does not hold a readable SAE: {error}") from None
    return SAE(cfg, tensors)
