"""One step and one SAE of a variant, beside its dense definition."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..train import SAE
from ..train.sae_config import SAEConfig
from ..train.variants import VARIANTS
from ..train.variants.base.gradients import finish_gradients
from ..train.variants.base.rows import Batch, Outcome
from ..train.variants.base.variant import Plan, Variant
from .shapes import SHAPES, Shape, skip_of
from .sparse_rows import D_OUT

PLAN = Plan(d_model=24, num_latents=96, batch_rows=256, num_steps=8)
Losses = dict[str, Tensor]


class VariantExample(ABC):
    """A variant with its dense definition, and parameters and rows to try both on."""

    settings: ClassVar[dict[str, Any]]
    """The variant as in a config, with ``kind``; small enough for 96 latents and 256 rows."""
    step: ClassVar[int] = 0
    """The step of ``PLAN.num_steps`` that is compared with the definition; a later one if steps differ."""
    shape: Shape = SHAPES["autoencoder"]
    """What the SAE reads and reconstructs; a parameter of some tests."""

    @abstractmethod
    def reference(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> tuple[Losses, Tensor]:
        """A dense, differentiable definition in float64: weighted losses by name, and codes [B, F].

        It takes the error of codes from :meth:`error`, and norms of decoder rows from :meth:`decoder_norms`:
        they are those of :attr:`shape`.
        """

    def error(self, parameters: Mapping[str, Tensor], codes: Tensor, x: Tensor) -> Tensor:
        """Reconstruction - target, [B, O]."""
        decoded = codes @ parameters["W_dec"] + parameters["b_dec"]
        return decoded + skip_of(dict(parameters), x) - self.target(x)

    def first_latents(self, codes: Tensor, count: int) -> Tensor:
        """``codes`` [B, F] of the first ``count`` latents, in turn of every layer; the others are 0."""
        by_turn = torch.arange(codes.shape[1]).view(self.shape.num_layers, -1).T.flatten()
        first = torch.zeros(codes.shape[1]).index_fill(0, by_turn[:count], 1.0)
        return codes * first

    def target(self, x: Tensor) -> Tensor:
        """What is to be reconstructed from ``x`` [B, D]: x itself, or a transcoder's rows [B, O]."""
        if not self.shape.is_transcoder:
            return x
        return x[:, :D_OUT].flip(1).abs() + 0.3 * x[:, 1 : D_OUT + 1] ** 2

    def decoder_norms(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The norm of each latent's decoder, [F], summed over a crosscoder's hooks."""
        widths = self.plan.hook_widths or (self.plan.d_decoded,)
        per_hook = torch.split(parameters["W_dec"], list(widths), dim=1)
        return torch.stack([w.norm(dim=1) for w in per_hook]).sum(0)

    @property
    def plan(self) -> Plan:
        return self.shape.plan_of(PLAN)

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.settings["kind"]].model_validate(self.settings)

    def example(self) -> tuple[dict[str, Tensor], Tensor]:
        """Parameters at a generic point (nothing tied, nothing zero), and rows: float32."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(*shape, generator=generator)

        directions = normal(PLAN.num_latents, PLAN.d_model)
        directions /= directions.norm(dim=1, keepdim=True)
        parameters = {
            "W_enc": directions + normal(PLAN.num_latents, PLAN.d_model, scale=0.05),
            "W_dec": directions,
            "b_enc": normal(PLAN.num_latents, scale=0.05),
            "b_dec": normal(PLAN.d_model, scale=0.1),
        }
        if self.shape.is_transcoder:
            own = torch.Generator().manual_seed(5)
            decoder = torch.randn(PLAN.num_latents, D_OUT, generator=own)
            parameters["W_dec"] = decoder / decoder.norm(dim=1, keepdim=True)
            parameters["b_in"] = parameters["b_dec"]
            parameters["b_dec"] = 0.1 * torch.randn(D_OUT, generator=own)
            if self.shape.num_layers > 1:
                parameters["W_enc"] = parameters["W_enc"][:, : self.plan.d_encoder].contiguous()
                written = self.shape.written(parameters["W_dec"])
                parameters["W_dec"] = written / written.norm(dim=1, keepdim=True)
            if self.plan.skip:
                parameters["W_skip"] = 0.2 * torch.randn(D_OUT, PLAN.d_model, generator=own)
        extra = self.variant.extra_parameters(PLAN)
        parameters |= {name: t + normal(*t.shape, scale=0.05) for name, t in extra.items()}
        return parameters, normal(PLAN.batch_rows, PLAN.d_model)

    def step_on(self, parameters: Mapping[str, Tensor], x: Tensor, dead: Tensor) -> Batch:
        """Run forward and backward on one batch with the engine's parts."""
        rows = centered_rows(parameters, x, self.target(x))
        batch = Batch(
            x_centered=rows["x_centered"],
            target_centered=rows["target_centered"],
            hook_widths=self.plan.hook_widths,
            parameters=parameters,
            state=dict(self.variant.initial_state(PLAN)),
            gradients={name: torch.zeros_like(t) for name, t in parameters.items()},
            outcome=Outcome.empty(PLAN.num_latents, x.device),
            dead=dead,
            number=self.step,
            num_steps=PLAN.num_steps,
            seed=0,
            step_rows=x.shape[0],
        )
        with torch.no_grad():
            self.variant.forward_backward(batch)
            finish_gradients(batch)
        return batch

    def trained_sae(self, normalization: dict[str, Any] | None = None) -> tuple[SAE, Tensor]:
        """An SAE that has seen one batch (so that thresholds exist), and that batch."""
        parameters, x = self.example()
        batch = self.step_on(parameters, x, torch.zeros(PLAN.num_latents, dtype=torch.bool))
        cfg = SAEConfig(
            kind=self.variant.kind,
            name=self.variant.run_name,
            d_model=PLAN.d_model,
            num_latents=PLAN.num_latents,
            k=self.variant.expected_l0,
            inference=self.variant.inference,
            hook="resid",
            normalization=normalization or {"kind": "none", "d_model": PLAN.d_model, "scale": 1.0},
            variant=self.variant,
            cache={"fingerprint": "0" * 64},
            training={"step": 1},
        )
        cfg = cfg.model_copy(update=self.shape.config)
        return SAE(cfg, {**parameters, **self.variant.inference_tensors(batch.state)}), x


def centered_rows(parameters: Mapping[str, Tensor], x: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Rows and targets as the engine hands them to a variant, computed plainly."""
    subtracted = parameters["b_in"] if "b_in" in parameters else parameters["b_dec"]
    target_centered = target - parameters["b_dec"] - skip_of(dict(parameters), x)
    return {"x_centered": x - subtracted, "target_centered": target_centered}
