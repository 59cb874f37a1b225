"""A trained SAE: its weights, how it encodes and decodes, and which run it comes from.

Its folder holds ``cfg.json`` and ``weights.safetensors``; loading never unpickles anything.
Legend: B rows, D width of what is encoded, O of what is reconstructed (D unless it is a transcoder), F
latents, P pairs.
"""

import hashlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..common.errors import UsageError
from ..common.torch_defaults import torch_defaults
from ..store.durable import write_bytes
from .backends.plain.products import matmul
from .backends.threads import torch_on_one_thread
from .engine.reading import input_bias
from .latent_shards import LatentShards
from .pairs import Pairs
from .sae_config import SAEConfig, tensor_shapes
from .sae_hooks import make_normalizer
from .shared_tensor_file import write_tensors
from .variants.base.rows import Rows

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "weights.safetensors"
SAE_FOLDER = "sae"  # of a variant, in a run
THRESHOLD = "threshold"
ENCODE_ROWS = 16384  # rows encoded at a time by forward()
Space = Literal["normalized", "raw"]


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
        for name, shape in tensor_shapes(cfg, self.shards.count).items():
            got = tuple(tensors[name].shape) if name in tensors else None
            if got != shape:
                raise UsageError(f"SAE {cfg.name}: tensor {name} should have shape {shape}, got {got}")
        for name, tensor in {"threshold": None, **tensors}.items():
            self.register_buffer(name, tensor)

    def extra_repr(self) -> str:
        cfg = self.cfg
        size = f"{cfg.num_latents:,} latents of rows of width {cfg.d_model}"
        return f"{cfg.name!r}, {cfg.kind}, {size}, at {cfg.hook}"

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
        """Decode codes (dense, float32 [..., F], or pairs) into normalized rows, float32 [..., O], without a
        skip connection.

        Raises:
            UsageError: codes of another number of latents, or weights of half precision.
        """
        self._check_weights()
        if isinstance(codes, Tensor):
            if codes.shape[-1:] != (self.cfg.num_latents,):
                raise UsageError(
                    f"expected codes [..., {self.cfg.num_latents}], one for each latent, got "
                    f"{list(codes.shape)}"
                )
            with torch.autocast(self.W_dec.device.type, enabled=False):
                return codes.to(self.W_dec.dtype) @ self.W_dec + self.b_dec
        if codes.num_latents != self.shards.count:  # others are not rows of W_dec
            raise UsageError(f"expected codes of {self.shards.count} latents, got {codes.num_latents}")
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
        prediction of its target, [..., O]. It is computed in float32 and has the type of ``x``.

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
        parts = torch.split(reconstruction, [target.d_model for target in self.cfg.predicted], dim=-1)
        inverted = [target.to_raw(part) for target, part in zip(self.cfg.predicted, parts, strict=True)]
        return inverted[0] if len(inverted) == 1 else torch.cat(inverted, dim=-1)

    def _normalized(self, x: Tensor, space: Space) -> tuple[Tensor, Any]:
        self._check(x)
        if x.dim() != 2:
            raise UsageError(
                f"SAE {self.cfg.name} expects [rows, {self.cfg.d_model}], got {tuple(x.shape)}: "
                + ("x[None] is one row" if x.dim() == 1 else "x.flatten(0, -2) makes rows of sequences")
            )
        if space == "raw":
            normalized: tuple[Tensor, Any] = self.normalizer.apply(x.float())
            return normalized
        if space == "normalized":
            return x.float(), None
        raise UsageError(f"input must be 'normalized' or 'raw', got {space!r}")

    def _check_weights(self) -> None:
        if self.W_enc.dtype not in (torch.float32, torch.float64):
            raise UsageError(
                f"SAE {self.cfg.name} computes in float32, and its weights are {self.W_enc.dtype}: load it "
                "again, or call sae.float(); sae(x) takes rows x of any floating-point type"
            )

    def _check(self, x: Tensor) -> None:
        self._check_weights()
        if not isinstance(x, Tensor):
            raise UsageError(
                f"SAE {self.cfg.name} expects a tensor, got {type(x).__name__}: torch.as_tensor(x) makes one"
            )
        if x.dim() == 0 or x.shape[-1] != self.cfg.d_model:
            raise UsageError(f"SAE {self.cfg.name} expects [rows, {self.cfg.d_model}], got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise UsageError(
                f"SAE {self.cfg.name} expects rows of floating-point numbers, got {x.dtype}: hand in "
                "activations, or convert them with x.float()"
            )

    @torch_defaults()
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
