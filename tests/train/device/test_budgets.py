"""What a steady step may cost on a GPU with the Triton kernels: launches, synchronizations, bytes.

The size is that of F = 24,576 latents, B = 4,096 rows, D = 768, k = 32, all three divided by a scale S of 64
or 32 (k is not): B * F, F * D and B * k * D are then S² times smaller, and the bytes are multiplied by it.
Lists of pairs and rows shrink by S only, so that the bytes are counted too high rather than too low. Only
where that is much of what is counted (``LONG_LISTS``) lists are multiplied by S.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from saecache.distributed.group import ALONE, Group
from saecache.train import TrainConfig
from saecache.train.backends import sources
from saecache.train.backends.choice import use_backend
from saecache.train.engine.loop import train_on_batch
from saecache.train.engine.reading import Reading, Source
from saecache.train.engine.trainee import Trainee
from saecache.train.runs.initialisation import initial_parameters
from saecache.train.variants import VARIANTS, sampled
from saecache.train.variants.base.variant import Plan
from saecache.train.variants.losses import nfm

from . import kernel_traffic
from .pretended_device import DEVICE, Counts, pretended_device, to_host

LATENTS, ROWS, WIDTH, K = 24_576, 4_096, 768, 32
FINER = {"topk with auxk", "mutual_choice with aux_zipf"}  # S is 32: they need latents to choose from
# Launches, synchronizations, GB. The aims are 60, 2, 6 for TopK, twice that for the other kinds that select,
# and 30 GB for ReLU with half of its latents active. Sampled-SAE and Probabilistic TopK go over the whole
# matrix, in two and in four passes of 0.4 GB. Multi-TopK has 128 pairs of each row, whose rows of a matrix
# are 1.6 GB: at the full size about 3 GB for the exact pre-activations of its candidates, 3.2 to decode and
# for the slopes of codes, 3.2 for both gradients, and 2 for what has no pairs: 11.4. Here it has too few
# latents to screen, so that it computes all pre-activations exactly instead.
BUDGETS: dict[str, tuple[int, int, float]] = {
    "topk": (60, 2, 6.0),
    "batch_topk": (120, 4, 12.0),
    "mutual_choice": (120, 4, 12.0),
    "feature_choice": (120, 4, 12.0),
    "multi_topk": (120, 4, 12.0),
    "matryoshka_batch_topk": (120, 4, 12.0),
    "sampled": (120, 4, 12.0),
    "probabilistic_topk": (120, 4, 12.0),
    "relu": (100, 4, 30.0),
    "gated": (150, 6, 54.0),
    "jumprelu": (120, 4, 36.0),
}
# The same of the terms of a loss that need more than the codes, with an eighth of all latents dead where dead
# ones are trained, and of what else an SAE can read. AuxK and aux_zipf have 64 pairs of each row each, whose
# rows of a matrix are 0.8 GB: 3.2 GB to decode and for both gradients, up to 1.6 for candidates, and that
# twice beside the 5 GB of Mutual Choice. NFM goes along the decoder twice in operations of torch, and NFM-inf
# once.
AUX = {"k": 64}  # what AuxK trains of a row where so many are dead; its default depends on the width, too
TERMS: dict[str, tuple[dict[str, Any], float, tuple[int, int, float]]] = {
    "topk with auxk": ({"kind": "topk", "k": K, "auxk": AUX}, 1 / 8, (120, 4, 12.0)),
    "mutual_choice with aux_zipf": (
        {"kind": "mutual_choice", "k": K, "auxk": AUX, "aux_zipf": AUX, "window_rows": 1},
        1 / 8,
        (120, 4, 12.0),
    ),
    "feature_choice with zipf": (
        {"kind": "feature_choice", "k": K, "zipf": {"rounding": "carry"}},
        0,
        (120, 4, 12.0),
    ),
    "mutual_choice with nfm and nfm_inf": (
        {
            "kind": "mutual_choice",
            "k": K,
            "nfm": {"coefficient": 1e-3},
            "nfm_inf": {"coefficient": 1e-3, "sample": 16},  # 1,024 of all latents
        },
        0,
        (120, 4, 12.0),
    ),
    "topk of a transcoder": ({"kind": "topk", "k": K}, 0, (66, 2, 9.0)),
    "topk of a crosscoder": ({"kind": "topk", "k": K}, 0, (66, 2, 9.0)),
}


def settings_of(kind: str) -> dict[str, Any]:
    return {"kind": kind, **({"k": K} if "k" in VARIANTS[kind].model_fields else {})}


LONG_LISTS = {"topk", "multi_topk", "mutual_choice with nfm and nfm_inf", "mutual_choice with aux_zipf"}


def cost_of_a_step(
    settings: dict[str, Any],
    scale: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    dead: float = 0.0,
    shape: str = "autoencoder",
    group: Group = ALONE,
    long_lists: bool = False,
) -> Counts:
    """The second step's, when everything that is kept from step to step is there. It is the third's of a
    kind that waits for a window of rows.

    A part ``dead`` of the latents is dead: their pre-activations are above 0, so that a term that trains them
    has as many pairs as it asks for, but far below those of others.
    The processes of ``group`` share the latents. ``long_lists``: see above.
    """
    monkeypatch.setattr(sources, "DEVICE_BLOCK_BYTES", sources.DEVICE_BLOCK_BYTES // scale**2)
    monkeypatch.setattr(nfm, "GRAM_ROWS", nfm.GRAM_ROWS // scale)
    monkeypatch.setattr(sampled, "THRESHOLD_ROWS", sampled.THRESHOLD_ROWS // scale)
    sources.block_bytes.cache_clear()
    latents, rows, width = LATENTS // scale, ROWS // scale, WIDTH // scale
    if long_lists:
        monkeypatch.setattr(kernel_traffic, "LIST_SHARE", 1 / scale)
        monkeypatch.setattr(kernel_traffic, "MATRIX_ENTRIES", rows * latents)
    config = TrainConfig.model_validate(
        {"variants": [settings], "num_latents": latents, "batch_rows": rows, "steps": 100}
    )
    widths = {"transcoder": {"d_target": width}, "crosscoder": {"hook_widths": (width // 2,) * 2}}
    shaped = {"d_model": width, **widths.get(shape, {})}
    plan = Plan(num_latents=latents, batch_rows=rows, num_steps=100, group=group, **shaped)
    generator = torch.Generator().manual_seed(1)  # by that of the parameters rows would be their directions
    x = torch.nn.functional.normalize(
        torch.randn(3 if "window_rows" in settings else 2, rows, width, generator=generator), dim=2
    )
    parameters = initial_parameters(plan, 0, torch.zeros(width))
    num_dead = round(dead * latents)
    parameters["W_enc"][:num_dead] *= 0.01
    parameters["b_enc"][:num_dead] = 0.05
    with torch.no_grad(), pretended_device() as counts, use_backend("triton"):
        on_device = {name: tensor.to(DEVICE) for name, tensor in parameters.items()}
        reading = READINGS[shape](width)
        trainee = Trainee(config.variants[0], plan, 0, config.optimizer, on_device, reading)
        trainee.rows_since_active[:num_dead] = config.dead_after_rows
        for step, batch in enumerate(x.to(DEVICE)):
            parts = batch.split([source.width for source in reading.inputs], dim=1)
            given = dict(zip(reading.inputs, parts, strict=True))
            given |= {source: batch for source in reading.targets if source not in given}
            counts.reset()
            train_on_batch(trainee, given, step, 0, 1.0, config)
        asked_for = {term for term in ("auxk", "aux_zipf", "nfm", "nfm_inf") if settings.get(term)}
        assert asked_for <= trainee._outcome.losses.keys(), "every term is at work"
        assert int((to_host(trainee.rows_since_active) >= config.dead_after_rows).sum()) == num_dead
    sources.block_bytes.cache_clear()
    return counts


def source_of(hook: str, width: int) -> Source:
    return Source(hook=hook, normalization=None, width=width)


READINGS: dict[str, Callable[[int], Reading]] = {
    "autoencoder": lambda width: Reading.autoencoder(source_of("in", width)),
    "transcoder": lambda width: Reading(inputs=(source_of("in", width),), targets=(source_of("out", width),)),
    "crosscoder": lambda width: Reading.autoencoder(
        source_of("in", width // 2), source_of("out", width // 2)
    ),
}


def test_all_kinds_have_a_budget() -> None:
    assert BUDGETS.keys() == VARIANTS.keys(), "add what a step of the kind may cost to BUDGETS here"


def scale_of(name: str) -> int:
    return 32 if name in FINER else 64


def check_budget(counts: Counts, budget: tuple[int, int, float], scale: int) -> None:
    launches, syncs, gigabytes = budget
    assert 0 < sum(counts.launches.values()) <= launches, counts.launches.most_common()
    assert sum(counts.syncs.values()) <= syncs, counts.syncs.most_common()
    moved = sum(counts.bytes.values()) * scale**2 / 1e9
    assert 1 < moved <= gigabytes, counts.bytes.most_common(20)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BUDGETS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_a_steady_step_stays_within_its_budget(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = scale_of(kind)
    counts = cost_of_a_step(settings_of(kind), scale, monkeypatch, long_lists=kind in LONG_LISTS)
    check_budget(counts, BUDGETS[kind], scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_further_terms_and_shapes_stay_within_their_budgets(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, dead, budget = TERMS[name]
    shape = name.split()[-1] if name.split()[-1] in READINGS else "autoencoder"
    scale = scale_of(name)
    long_lists = name in LONG_LISTS
    counts = cost_of_a_step(settings, scale, monkeypatch, dead=dead, shape=shape, long_lists=long_lists)
    check_budget(counts, budget, scale)
