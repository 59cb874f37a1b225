"""What the claims run trains: forms (how large, how long), and sections of arms, trained side by side.

An arm is one variant with one set of settings; each is trained with every seed of the form. All arms of a
form have the same cache, width, batches, steps, optimizer, schedule and AuxK, and but for the sections in
:data:`TUNED` the same learning rate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Arms = dict[str, dict[str, Any]]  # name -> settings of the variant
SCORES = ("squared_l2", "entropy", "uniform")
MULTIPLES = (1, 2, 4, 16)
PREFIX = "tuned_"  # of the arms of sections in TUNED
STEP = {"kind": "step"}
L1_COEFFICIENTS = {
    "relu": (0.07, 0.11),
    "gated": (0.1, 0.2),
}  # to either side of 16 active latents, in trials


@dataclass(frozen=True, kw_only=True)
class Form:
    """The size of a run.

    Attributes:
        aux_k: AuxK's k for all arms, from k.
        rate: the peak learning rate of all arms, but for those of the sections in :data:`TUNED`.
        rates: the learning rates among which section ``rates`` finds that of each kind for those.
        ce_tokens: tokens on which CE and KL are measured; ``tuned_ce_tokens`` in the sections in
            :data:`TUNED`, which have the most SAEs.
        pools: the pool factors of Sampled-SAE.
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
    dead_after_rows: int
    ce_tokens: int
    tuned_ce_tokens: int = 2_000
    max_rows: int = 500_000
    pools: tuple[int, ...] = (1, 3, 10, 30, 100)

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
    "full": Form(  # about three hours on two quiet cores
        hook="resid_post.14",
        num_latents=4608,
        batch_rows=2048,
        steps=1500,
        seeds=(0, 1, 2),
        ks=(4, 8, 16, 32),
        dead_after_rows=200_000,
        ce_tokens=20_000,
        tuned_ce_tokens=20_000,
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


def rates(form: Form, zipf: Mapping[str, float]) -> Arms:
    """One seed of every kind at several learning rates, for the sections in :data:`TUNED`."""
    return {
        name.replace(PREFIX, f"lr{rate:g}_"): {**arm, "optimizer": {"learning_rate": rate}}
        for name, arm in {**every_kind(form, zipf), **every_penalty(form, zipf)}.items()
        for rate in form.rates
    }


def auxiliary_k(form: Form, zipf: Mapping[str, float]) -> Arms:
    """TopK and Mutual Choice at the smallest k, with as many auxiliary latents a row as multiples of k."""
    k = form.ks[0]
    arms: Arms = {}
    for multiple in MULTIPLES:
        auxk = {"k": multiple * k}
        arms[f"topk_k{k}_aux{multiple}"] = {"kind": "topk", "k": k, "auxk": auxk}
        arms[f"mutual_k{k}_aux{multiple}"] = _mutual(k, auxk, {**auxk, "zipf": dict(zipf)}, form)
    return arms


def baselines(form: Form, zipf: Mapping[str, float]) -> Arms:
    """TopK, and BatchTopK, whose densities also give Zipf's law for the others."""
    arms: Arms = {}
    for k in form.ks:
        for kind in ("topk", "batch_topk"):
            arms[f"{kind}_k{k}"] = {"kind": kind, "k": k, "auxk": {"k": form.aux_k(k)}}
    return arms


def choice(form: Form, zipf: Mapping[str, float]) -> Arms:
    """Mutual Choice, and Feature Choice after it, with Zipf's and with uniform m_i."""
    arms: Arms = {}
    for k in form.ks:
        mutual, phase = _mutual_and_phase(k, form, zipf)
        arms[f"mutual_k{k}"] = mutual
        arms[f"zipf_after_mutual_k{k}"] = _feature(k, zipf=_carried(zipf), mutual_choice=phase)
        arms[f"uniform_after_mutual_k{k}"] = _feature(k, mutual_choice=phase)
    return arms


def probabilistic(form: Form, zipf: Mapping[str, float]) -> Arms:
    """Probabilistic TopK, with its warmup read as samples: 4 % of the run."""
    return {f"probabilistic_k{k}": {"kind": "probabilistic_topk", "k": k} for k in form.ks}


def choice_ablations(form: Form, zipf: Mapping[str, float]) -> Arms:
    """Mutual Choice without some of its auxiliary losses, and Feature Choice from the first step on."""
    k = form.ks[0]
    mutual, _ = _mutual_and_phase(k, form, zipf)
    kept = {"auxk": mutual["auxk"], "aux_zipf": mutual["aux_zipf"]}
    without_dead = {**kept["aux_zipf"], "without_dead": True}
    return {
        f"topk_without_auxk_k{k}": {"kind": "topk", "k": k, "auxk": None},
        f"mutual_without_zipf_k{k}": _mutual(k, kept["auxk"], None, form),
        f"mutual_without_either_k{k}": _mutual(k, None, None, form),
        f"mutual_zipf_without_dead_k{k}": _mutual(k, kept["auxk"], without_dead, form),
        f"uniform_from_scratch_k{k}": _feature(k),
        f"zipf_from_scratch_k{k}": _feature(k, zipf=_carried(zipf)),
    }


def probabilistic_ablations(form: Form, zipf: Mapping[str, float]) -> Arms:
    """TopK as in that paper (no AuxK) and Probabilistic TopK: its ablations, first temperatures, and its
    warmup read as steps, which are 53 % of the run.
    """
    arms: Arms = {f"topk_without_auxk_k{k}": {"kind": "topk", "k": k, "auxk": None} for k in form.ks[1:]}
    for k in form.ks:
        arms[f"probabilistic_long_warmup_k{k}"] = _probabilistic(k, warmup=0.53)
    k = form.ks[0]
    return arms | {
        f"probabilistic_no_magnitude_k{k}": _probabilistic(k, magnitude_weight=0.0),
        f"probabilistic_no_layer_norm_k{k}": _probabilistic(k, layer_norm=False),
        f"probabilistic_sigmoid_k{k}": _probabilistic(k, gate="sigmoid"),
        f"probabilistic_beta0.5_k{k}": _probabilistic(k, beta_start=0.5),
        f"probabilistic_beta10_k{k}": _probabilistic(k, beta_start=10.0),
    }


def sampled(form: Form, zipf: Mapping[str, float]) -> Arms:
    """Sampled-SAE by score and pool factor."""
    k = form.ks[-1]
    auxk = {"k": form.aux_k(k)}
    return {
        f"sampled_{score}_l{pool}_k{k}": {
            "kind": "sampled",
            "k": k,
            "score": score,
            "pool_factor": pool,
            "auxk": auxk,
        }
        for score in SCORES
        for pool in form.pools
        if pool * k <= form.num_latents
    }


def every_kind(form: Form, zipf: Mapping[str, float]) -> Arms:
    """The kinds that choose how many latents are active, at the largest k."""
    k = form.ks[-1]
    auxk = {"k": form.aux_k(k)}
    mutual, phase = _mutual_and_phase(k, form, zipf)
    prefixes = [0.125, 0.25, 0.5, 1.0]
    arms: Arms = {
        "topk": {"kind": "topk", "k": k, "auxk": auxk},
        "batch_topk": {"kind": "batch_topk", "k": k, "auxk": auxk},
        "multi_topk": {"kind": "multi_topk", "k": k, "auxk": auxk},
        "matryoshka": {"kind": "matryoshka_batch_topk", "k": k, "prefixes": prefixes, "auxk": auxk},
        "mutual": mutual,
        "zipf_after_mutual": _feature(k, zipf=_carried(zipf), mutual_choice=phase),
        "probabilistic": _probabilistic(k),
        "sampled": {"kind": "sampled", "k": k, "score": "squared_l2", "pool_factor": 10, "auxk": auxk},
    }
    return {f"{PREFIX}{name}_k{k}": arm for name, arm in arms.items()}


def every_penalty(form: Form, zipf: Mapping[str, float]) -> Arms:
    """The kinds that are sparse by a penalty.

    ReLU and Gated are trained with two coefficients, one to either side of k active latents, and are compared
    between them. JumpReLU's thresholds are calibrated to k.
    """
    k = form.ks[-1]
    arms: Arms = {
        "jumprelu": {"kind": "jumprelu", "threshold_scale": "linear", "penalty": _penalty(0.002) | STEP}
    }
    for kind, coefficients in L1_COEFFICIENTS.items():
        for coefficient in coefficients:
            arms[f"{kind}_c{coefficient:g}"] = {"kind": kind, "l1": _penalty(coefficient)}
    return {f"{PREFIX}{name}_k{k}": arm for name, arm in arms.items()}


SECTIONS: dict[str, Callable[[Form, Mapping[str, float]], Arms]] = {
    "rates": rates,
    "auxiliary_k": auxiliary_k,
    "baselines": baselines,
    "choice": choice,
    "probabilistic": probabilistic,
    "choice_ablations": choice_ablations,
    "probabilistic_ablations": probabilistic_ablations,
    "sampled": sampled,
    "every_kind": every_kind,
    "every_penalty": every_penalty,
}
BY_K = ("choice", "probabilistic")  # trained and measured one k at a time
WITH_MODEL = ("baselines", "choice", "probabilistic", "every_kind", "every_penalty")  # CE and KL too
ONE_SEED = ("rates", "auxiliary_k")
TUNED = ("every_kind", "every_penalty")  # each kind has its own learning rate
BY_BATCH = ("baselines", "choice", "choice_ablations", "sampled")  # measured by the rule of training too


def with_seeds(arms: Arms, seeds: Sequence[int], rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Variants for a training: each arm with each seed, named ``<arm>_seed<seed>``.

    An arm takes the learning rate of its kind in ``rates``, that of BatchTopK where its kind was not tried.
    """
    variants = []
    for name, arm in arms.items():
        rate = rates.get(arm["kind"], rates.get("batch_topk"))
        own = {} if rate is None else {"optimizer": {"learning_rate": rate}}
        variants.append({**own, **arm, "seed": list(seeds), "name": f"{name}_seed{{seed}}"})
    return variants


def _mutual_and_phase(k: int, form: Form, zipf: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mutual Choice, and the same as the first phase of Feature Choice."""
    auxk = {"k": form.aux_k(k)}
    mutual = _mutual(k, auxk, {**auxk, "zipf": dict(zipf)}, form)
    return mutual, {"steps": 0.7, **{key: mutual[key] for key in ("auxk", "aux_zipf", "window_rows")}}


def _mutual(k: int, auxk: Any, aux_zipf: Any, form: Form) -> dict[str, Any]:
    window = None if aux_zipf is None else form.dead_after_rows // 4
    return {"kind": "mutual_choice", "k": k, "auxk": auxk, "aux_zipf": aux_zipf, "window_rows": window}


def _feature(k: int, **more: Any) -> dict[str, Any]:
    return {"kind": "feature_choice", "k": k, **more}


def _carried(zipf: Mapping[str, float]) -> dict[str, Any]:
    return {**zipf, "rounding": "carry"}


def _penalty(coefficient: float) -> dict[str, Any]:
    return {"coefficient": coefficient, "warmup": 0.1}


def _probabilistic(k: int, **more: Any) -> dict[str, Any]:
    return {"kind": "probabilistic_topk", "k": k, **more}
