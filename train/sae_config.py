"""The config of an SAE: what it reads and predicts, its variant, and which run it comes from."""

from typing import Any

from pydantic import (
    NonNegativeFloat,
    PositiveInt,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor

from ..common.frozen import FrozenModel
from ..store.normalization import Normalizer, RowState
from .variants import AnyVariant

FORMAT_VERSION = 1
FORMAT_OF_SEVERAL_HOOKS = 2  # of transcoders and crosscoders, cross-layer or not


class HookRows(FrozenModel):
    """The rows of one hook, as an SAE reads or predicts them."""

    hook: str
    d_model: PositiveInt
    normalization: dict[str, Any]  # of store.normalization.Normalizer

    @property
    def normalizer(self) -> Normalizer:
        return Normalizer.from_dict(self.normalization)


class SAETarget(HookRows):
    """What a transcoder predicts. Its normalization can be inverted without the row."""

    skip: bool = False  # the prediction includes W_skip (x - b_in)

    def to_raw(self, prediction: Tensor) -> Tensor:
        """Normalized predictions [B, d_model] as raw rows."""
        return self.normalizer.invert(prediction, RowState(factor=self.normalizer.factor or 1.0))


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


def tensor_shapes(cfg: SAEConfig, num_latents: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that every SAE of this config has, whatever its kind."""
    F, D, O = num_latents, cfg.d_model, cfg.d_decoded  # noqa: E741 - as in the legend
    encoder = (F, D // cfg.num_layers)
    shapes: dict[str, tuple[int, ...]] = {"W_enc": encoder, "W_dec": (F, O), "b_enc": (F,), "b_dec": (O,)}
    if cfg.predicted:
        shapes["b_in"] = (D,)
        if cfg.predicted[0].skip:
            shapes["W_skip"] = (O, D)
    return shapes
