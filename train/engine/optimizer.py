"""The optimizer: tangential decoder gradients, clipping by the global norm, Adam(W), unit decoder rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from ...common.frozen import FrozenModel
from ..backends import huge_pages
from ..backends.choice import backend_of
from ..backends.plain.adam import TINY
from ..backends.plain.products import total
from ..backends.protocol import AdamSettings, Backend
from ..latent_shards import WITHOUT_LATENTS, LatentShards

LearningRate = Literal["auto"] | PositiveFloat
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class OptimizerConfig(FrozenModel):
    """Adam or AdamW, the same for every parameter."""

    kind: Literal["adam", "adamw"] = "adam"
    learning_rate: LearningRate = "auto"  # auto: 2e-4 * sqrt(2**14 / latents), Gao et al. 2024, section 3
    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0  # adam adds it to the gradient, adamw subtracts it from the weights
    clip_norm: PositiveFloat | None = 1.0  # largest global gradient norm; null does not clip


class OptimizerOverrides(FrozenModel):
    """Settings of :class:`OptimizerConfig` for one variant; null takes the run's."""

    learning_rate: LearningRate | None = None
    betas: Betas | None = None
    eps: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None

    def applied_to(self, config: OptimizerConfig) -> OptimizerConfig:
        """A copy of ``config`` with these settings."""
        changes: dict[str, Any] = {
            "learning_rate": self.learning_rate,
            "betas": self.betas,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }
        return config.model_copy(update={key: value for key, value in changes.items() if value is not None})


class Optimizer:
    """Adam or AdamW over named parameters; the moments are plain tensors.

    With ``unit_norm_decoder`` the rows of ``W_dec`` keep norm 1: the gradient's part along each row is
    removed, which also lowers the global norm, and each updated row is divided by its norm.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: Mapping[str, Tensor],
        *,
        unit_norm_decoder: bool,
        frozen: Iterable[str] = (),
        shards: LatentShards | None = None,
    ) -> None:
        """``shards``: who holds the other latents, if ``parameters`` are of some of them only."""
        self.shards = shards
        self.config = config
        self.unit_norm = {"W_dec"} if unit_norm_decoder else set()
        self.parameters = {name: tensor for name, tensor in parameters.items() if name not in set(frozen)}
        self.steps = torch.zeros((), dtype=torch.int64)
        # 0 as long as every loss and norm was finite, else NaN: float64 [], on the device
        self.unsound = torch.zeros(
            (), dtype=torch.float64, device=next(iter(self.parameters.values())).device
        )
        self.exp_avg = {name: huge_pages.zeros_like(tensor) for name, tensor in self.parameters.items()}
        self.exp_avg_sq = {name: huge_pages.zeros_like(tensor) for name, tensor in self.parameters.items()}

    def global_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The global norm of the gradients that a step uses, float64 []; not finite if an entry is not."""
        pairs = [
            (gradients[name], tensor if name in self.unit_norm else None)
            for name, tensor in self.parameters.items()
        ]
        backend = backend_of(pairs[0][0])
        if self.shards is None or self.shards.is_whole:
            return backend.global_norm(pairs)
        return shared_norm(backend, dict(zip(self.parameters, pairs, strict=True)), self.shards)

    def step(
        self,
        gradients: Mapping[str, Tensor],
        norm: Tensor,
        learning_rate: float,
        others: Sequence[Tensor] = (),
    ) -> Tensor:
        """Update every parameter in place; scale the gradients if their ``norm`` is above ``clip_norm``.

        From the first time on that ``norm``, or one of the ``others`` (float64 []), is not finite, nothing is
        updated any more. The host reads none of them.

        Returns:
            ``others`` and ``norm``, float64 [n + 1].
        """
        self.steps += 1
        figures = torch.stack([*others, norm])
        scale = backend_of(next(iter(self.parameters.values()))).clip(
            figures, self.config.clip_norm, self.unsound
        )
        settings = AdamSettings(
            learning_rate=learning_rate,
            betas=self.config.betas,
            eps=self.config.eps,
            weight_decay=self.config.weight_decay,
            decoupled=self.config.kind == "adamw",
            gradient_scale=scale,
        )
        for name, tensor in self.parameters.items():
            moments = self.exp_avg[name], self.exp_avg_sq[name]
            unit_rows = name in self.unit_norm
            backend = backend_of(tensor)
            backend.adam_step(
                tensor, gradients[name], *moments, int(self.steps), settings, unit_rows=unit_rows
            )
        return figures

    def forget(self, latents: Tensor) -> None:
        """Set the moments of some latents (int64 [n], of all F) to zero in all tensors."""
        latents = latents if self.shards is None else self.shards.among_own(latents)
        for name in self.parameters.keys() - WITHOUT_LATENTS:
            self.exp_avg[name][latents] = 0
            self.exp_avg_sq[name][latents] = 0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the optimizer's state by name (not copies), for checkpoints."""
        averages = {f"exp_avg.{name}": tensor for name, tensor in self.exp_avg.items()}
        squares = {f"exp_avg_sq.{name}": tensor for name, tensor in self.exp_avg_sq.items()}
        return {"steps": self.steps, **averages, **squares}


def shared_norm(
    backend: Backend, gradients: Mapping[str, tuple[Tensor, Tensor | None]], shards: LatentShards
) -> Tensor:
    """:meth:`.Backend.global_norm` of gradients of which several processes have some latents each."""
    shared = {name: pair for name, pair in gradients.items() if name not in WITHOUT_LATENTS}
    columns = [g if g.dim() == 1 else backend.row_squares(g, rows) for g, rows in shared.values()]
    norms = {}
    for name, column in zip(shared, shards.gather_columns(columns), strict=True):
        matrix = shared[name][0].dim() > 1
        norms[name] = total(column).sqrt() if matrix else backend.gradient_norm(column.float())
    every = [
        norms[name] if name in norms else backend.gradient_norm(gradients[name][0]) for name in gradients
    ]
    return torch.stack(every).square().sum().sqrt()


def normalize_rows(weights: Tensor) -> None:
    """Scale each row of ``weights`` [F, D] to norm 1, in place."""
    weights.div_(torch.linalg.vector_norm(weights, dim=1, keepdim=True).clamp_min_(TINY))
