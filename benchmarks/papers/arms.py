"""What the claims run trains: sections of arms, trained side by side.

An arm is one variant with one set of settings; each is trained with every seed of the form. All arms of a
form have the same cache, width, batches, steps, optimizer, schedule and AuxK, and but for the sections in
:data:`TUNED` the same learning rate.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forms import Form

Arms = dict[str, dict[str, Any]]  # name -> settings of the variant
SCORES = ("squared_l2", "entropy", "uniform")
MULTIPLES = (1, 2, 4, 16)
PREFIX = "tuned_"  # of the arms of sections in TUNED
STEP = {"kind": "step"}


def rates(form: Form, zipf: Mapping[str, float]) -> Arms:
    """One seed of every kind at several learning rates, for the sections in :data:`TUNED`.

    :func:`learning_rates.rates_to_try` says which further ones a kind needs.
    """
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
    return arms | _ablations_at(form.ks[0])


def probabilistic_ablations_next_k(form: Form, zipf: Mapping[str, float]) -> Arms:
    """The ablations at the second k: the paper has 8, 16 and 32."""
    return _ablations_at(form.ks[1]) if len(form.ks) > 1 else {}


def _ablations_at(k: int) -> Arms:
    return {
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


def layers(form: Form, zipf: Mapping[str, float]) -> Arms:
    """The main kinds at another layer, at the largest k; TopK also at the smallest, for the slope along k."""
    k = form.ks[-1]
    auxk = {"k": form.aux_k(k)}
    mutual, phase = _mutual_and_phase(k, form, zipf)
    smallest = {"kind": "topk", "k": form.ks[0], "auxk": {"k": form.aux_k(form.ks[0])}}
    arms: Arms = {
        f"topk_k{form.ks[0]}": smallest,
        f"topk_k{k}": {"kind": "topk", "k": k, "auxk": auxk},
        f"batch_topk_k{k}": {"kind": "batch_topk", "k": k, "auxk": auxk},
        f"mutual_k{k}": mutual,
        f"zipf_after_mutual_k{k}": _feature(k, zipf=_carried(zipf), mutual_choice=phase),
    }
    return {f"{layer_prefix(form)}{name}": arm for name, arm in arms.items()}


def layer_prefix(form: Form) -> str:
    """Of the arms of section ``layers``, as ``layer9_``."""
    return f"layer{form.hook.rpartition('.')[2]}_"


def longer(form: Form, zipf: Mapping[str, float]) -> Arms:
    """Probabilistic TopK and TopK as in its paper, for as many steps as the form has; at the largest k.

    The arms of other sections are those of the usual number of steps.
    """
    k = form.ks[-1]
    return {
        f"steps{form.steps}_{name}_k{k}": arm
        for name, arm in {
            **_noisy_and_topk(k),
            "probabilistic_long_warmup": _probabilistic(k, warmup=0.53),
        }.items()
    }


def widths(form: Form, zipf: Mapping[str, float]) -> Arms:
    """The same with half, twice and four times as many latents as the arms of other sections."""
    k = form.ks[-1]
    return {
        f"latents{latents}_{name}_k{k}": {**arm, "num_latents": latents}
        for latents in (form.num_latents // 2, form.num_latents * 2, form.num_latents * 4)
        for name, arm in _noisy_and_topk(k).items()
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
    """The kinds that are sparse by a penalty, with the coefficients of the form.

    ReLU and Gated have two, to either side of k active latents, and are compared between them. JumpReLU has
    one, and its thresholds are calibrated to k.
    """
    penalty = _penalty(form.jumprelu_coefficient) | STEP
    arms: Arms = {"jumprelu": {"kind": "jumprelu", "threshold_scale": "linear", "penalty": penalty}}
    for kind, coefficients in (("relu", form.relu_coefficients), ("gated", form.gated_coefficients)):
        for coefficient in coefficients:
            arms[f"{kind}_c{coefficient:g}"] = {"kind": kind, "l1": _penalty(coefficient)}
    return {f"{PREFIX}{name}_k{form.ks[-1]}": arm for name, arm in arms.items()}


SECTIONS: dict[str, Callable[[Form, Mapping[str, float]], Arms]] = {
    "rates": rates,
    "auxiliary_k": auxiliary_k,
    "baselines": baselines,
    "choice": choice,
    "probabilistic": probabilistic,
    "choice_ablations": choice_ablations,
    "probabilistic_ablations": probabilistic_ablations,
    "probabilistic_ablations_next_k": probabilistic_ablations_next_k,
    "sampled": sampled,
    "every_kind": every_kind,
    "every_penalty": every_penalty,
    "layers": layers,
    "longer": longer,
    "widths": widths,
}
BY_K = ("choice", "probabilistic")  # trained and measured one k at a time
BY_HOOK = ("layers",)  # ... at each of the form's other hooks
BY_STEPS = ("longer",)  # ... for each of the form's multiples of steps
WITH_MODEL = ("baselines", "choice", "probabilistic", "every_kind", "every_penalty")  # CE and KL too
ONE_SEED = ("rates", "auxiliary_k", "longer", "widths")
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


def _noisy_and_topk(k: int) -> Arms:
    return {
        "topk_without_auxk": {"kind": "topk", "k": k, "auxk": None},
        "probabilistic": _probabilistic(k),
    }


def _probabilistic(k: int, **more: Any) -> dict[str, Any]:
    return {"kind": "probabilistic_topk", "k": k, **more}
