"""A trained SAE: its weights, how it encodes and decodes, and which run it comes from.

Its folder holds ``cfg.json`` and ``weights.safetensors``; loading never unpickles anything.
Legend: B rows, D model width, F latents, P pairs.
"""

import json
import warnings
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
SAE_FOLDER = "sae"  # of a variant, in a run
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
        as_trained: bool = False,
        sparse: bool | None = None,
    ) -> Tensor:
        """Codes of rows ``x`` [B, D] as a dense tensor, float32 [B, F].

        Args:
            input: ``normalized`` when x is as the cache hands it out under ``cfg.normalization``; ``raw``
                when x comes from the model: the SAE then normalizes it.
            as_trained: use the rule of training, which looks at the whole batch for batch-wide kinds.
            sparse: deprecated; call :meth:`encode_sparse` instead of ``sparse=True``.

        Raises:
            UsageError: rows of another width, or a tensor that does not hold floating-point numbers.
        """
        pairs = self.encode_sparse(x, input=input, as_trained=as_trained)
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
    ) -> Pairs:
        """Codes of rows ``x`` [B, D] as :class:`Pairs` (row, latent, value); see :meth:`encode`."""
        return self._encode(self._normalized(x, input)[0], as_trained)

    @torch.no_grad()
    def decode(self, codes: Tensor | Pairs) -> Tensor:
        """Decode codes (dense [B, F] or pairs) into normalized rows [B, D]."""
        if isinstance(codes, Tensor):
            return codes @ self.W_dec + self.b_dec
        return backend_of(self.W_dec).decode(codes, self.W_dec, self.b_dec)

    @torch.no_grad()
    def forward(self, x: Tensor, *, input: Space = "normalized") -> Tensor:  # noqa: A002
        """The reconstruction of ``x`` [..., D] in the space x came in: raw in, raw out.

        Raises:
            UsageError: rows of another width, or a tensor that does not hold floating-point numbers.
        """
        self._check(x)
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
        self._check(x)
        if x.dim() != 2:
            raise UsageError(f"SAE {self.cfg.name} expects [rows, {self.cfg.d_model}], got {tuple(x.shape)}")
        if space == "raw":
            return self.normalizer.apply(x.float())
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
    def _encode(self, x: Tensor, as_trained: bool) -> Pairs:
        tensors = dict(self.named_buffers())
        rows = Rows(x_centered=x - self.b_dec, parameters=tensors, state=tensors)
        return self.cfg.variant.encode(rows, as_trained=as_trained)

    def save(self, folder: str | Path) -> None:
        """Write the weights, then the config, each atomically. Equal SAEs give equal bytes."""
        folder = Path(folder)
        write_tensors(folder / WEIGHTS_FILE, dict(self.named_buffers()))
        write_bytes(folder / CONFIG_FILE, (self.cfg.model_dump_json(indent=2) + "\n").encode("utf-8"))


def find_saes(folder: Path) -> list[Path]:
    """The SAE folders that ``folder`` stands for: itself, a variant's ``sae``, or every one of a run.

    Raises:
        UsageError: it is none of these.
    """
    for pattern in ("", f"{SAE_FOLDER}/", f"*/{SAE_FOLDER}/"):
        if found := sorted(path.parent for path in folder.glob(pattern + CONFIG_FILE)):
            return found
    what = f"it has no {CONFIG_FILE}" if folder.is_dir() else "there is no such folder"
    raise UsageError(
        f"no SAE in {folder}: {what}; expected an SAE folder (with {CONFIG_FILE} and {WEIGHTS_FILE}) or a "
        f"run folder (with NAME/{SAE_FOLDER}/{CONFIG_FILE})"
    )


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> SAE:
    """The SAE in ``folder``: a run's ``<variant>/sae``, a checkpoint, or a run folder with one SAE in it.

    Raises:
        UsageError: no SAE there or several, an unknown kind, a newer format, or weights that contradict the
            config.
    """
    found = find_saes(Path(folder))
    if len(found) > 1:
        raise UsageError(f"{folder} holds {len(found)} SAEs, name one of them: {', '.join(map(str, found))}")
    folder = found[0]
    if not (folder / WEIGHTS_FILE).is_file():
        raise UsageError(f"no SAE in {folder}: expected {CONFIG_FILE} and {WEIGHTS_FILE} there")
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
