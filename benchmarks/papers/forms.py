"""The sizes of the claims run: how large its SAEs are, how long they train, on what they are measured."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Form:
    """The size of a run.

    Attributes:
        aux_k: AuxK's k for all arms, from k.
        rate: the peak learning rate of all arms, but for those of the sections in :data:`arms.TUNED`.
        rates: the learning rates at which section ``rates`` begins to look for that of each kind.
        relu_coefficients: two of ReLU's L1 penalty, such that one SAE has more and one has fewer active
            latents than the largest k, at the learning rate that suits ReLU; ``gated_coefficients`` likewise.
        jumprelu_coefficient: of its step penalty, such that training ends near the largest k.
        ce_tokens: tokens on which CE and KL are measured; ``tuned_ce_tokens`` in the sections in
            :data:`arms.TUNED`, which have the most SAEs.
        pools: the pool factors of Sampled-SAE.
        other_hooks: where the main claims are tested again.
        longer: multiples of ``steps`` for which Probabilistic TopK and TopK are trained, to see whether
            their difference stays.
    """

    hook: str
    num_latents: int
    batch_rows: int
    steps: int
    seeds: tuple[int, ...]
    ks: tuple[int, ...]
    aux_k: Callable[[int], int] = lambda k: 2 * k
    rate: float = 2e-3
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    relu_coefficients: tuple[float, float] = (0.05, 0.08)
    gated_coefficients: tuple[float, float] = (0.075, 0.13)
    jumprelu_coefficient: float = 0.002
    dead_after_rows: int
    ce_tokens: int
    tuned_ce_tokens: int = 2_000
    max_rows: int = 500_000
    pools: tuple[int, ...] = (1, 3, 10, 30, 100)
    other_hooks: tuple[str, ...] = ()
    longer: tuple[int, ...] = (2,)

    def settings(self, steps: int | None = None) -> dict[str, Any]:
        """What every arm of this form has in common, as settings of a training."""
        steps = steps or self.steps
        return {
            "hook": self.hook,
            "normalization": "unit",
            "num_latents": self.num_latents,
            "batch_rows": self.batch_rows,
            "steps": steps,
            "dead_after_rows": self.dead_after_rows,
            "optimizer": {"kind": "adam", "learning_rate": self.rate, "clip_norm": 1.0},
            "schedule": {"warmup": 0.05, "decay": "linear", "decay_start": 0.7},
            "initialisation": {"encoder_norm": 1.0},
            "checkpoint": {"every_steps": max(50, steps // 4), "keep": 1},
            "log": {"every_steps": max(1, steps // 20), "heldout_rows": 0, "progress": False},
        }


FORMS = {
    "full": Form(  # about five hours on two quiet cores, by its sections, which were run apart
        hook="resid_post.14",
        num_latents=1152,
        batch_rows=1024,
        steps=1500,
        seeds=(0, 1, 2),
        ks=(4, 8, 16, 32),
        rates=(2e-3, 4e-3, 8e-3),
        relu_coefficients=(0.026, 0.042),
        gated_coefficients=(0.04, 0.07),
        jumprelu_coefficient=0.0007,
        dead_after_rows=150_000,
        ce_tokens=5_000,
        tuned_ce_tokens=5_000,
        pools=(1, 3, 10, 30),
        other_hooks=("resid_post.9", "resid_post.20"),
        longer=(2, 4),
    ),
    "medium": Form(
        hook="resid_post.14",
        num_latents=1152,
        batch_rows=512,
        steps=400,
        seeds=(0, 1, 2),
        ks=(8, 16),
        rates=(2e-3, 4e-3, 8e-3),
        dead_after_rows=40_000,
        ce_tokens=2_000,
        tuned_ce_tokens=1_000,
        pools=(3, 10, 30),
        other_hooks=("resid_post.9", "resid_post.20"),
        longer=(2, 4),
    ),
    "demo": Form(
        hook="resid_post.3",
        num_latents=1280,
        batch_rows=1024,
        steps=300,
        seeds=(0, 1, 2),
        ks=(4, 16),
        dead_after_rows=60_000,
        ce_tokens=5_000,
        max_rows=12_000,
        pools=(1, 10, 50),
    ),
    "short": Form(
        hook="resid_post.3",
        num_latents=1024,
        batch_rows=512,
        steps=100,
        seeds=(0, 1),
        ks=(8,),
        dead_after_rows=20_000,
        ce_tokens=2_000,
        pools=(1, 10),
    ),
}
