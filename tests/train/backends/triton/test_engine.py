"""The whole engine on this backend: every kind takes the steps that it takes on the compiled loops."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from saecache.testing.shapes import SHAPES
from saecache.train import TrainConfig
from saecache.train.backends.choice import use_backend
from saecache.train.engine.reading import input_bias
from saecache.train.engine.trainee import DivergedError, Trainee
from saecache.train.pairs import Pairs
from saecache.train.selection.pre_activations import HINT
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.rows import Batch
from saecache.train.variants.base.variant import Plan

from .cases import numbers

B, F, D = 12, 64, 24
PLAN = Plan(d_model=D, num_latents=F, batch_rows=B, num_steps=8)
DEAD_AFTER = 1000  # rows; some latents start with more
AUXK: dict[str, Any] = {"auxk": {"coefficient": 0.1, "k": 4}}
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3, **AUXK},
    "batch_topk": {"k": 3, **AUXK},
    "multi_topk": {"k": 3, "multiple": 2, "weight": 0.25, **AUXK},
    "matryoshka_batch_topk": {"k": 3, "prefixes": [0.25, 1.0], **AUXK},
    "mutual_choice": {
        "k": 3, **AUXK, "aux_zipf": {"coefficient": 0.2, "k": 3}, "nfm": {"coefficient": 0.01},
        "nfm_inf": {"coefficient": 0.3}, "window_rows": 64,
    },
    "feature_choice": {"k": 3, "zipf": {"alpha": 1.0, "beta": 3.0, "max_rows": 20}},
    "sampled": {"k": 3, "pool_factor": 2.5, **AUXK},
    "probabilistic_topk": {"k": 3, "warmup": 2},
    "relu": {"l1": {"coefficient": 0.02, "warmup": 0}},
    "gated": {"l1": {"coefficient": 0.02, "warmup": 0}},
    "jumprelu": {
        "penalty": {"kind": "step", "coefficient": 0.01, "warmup": 0},
        "initial_threshold": 0.25, "bandwidth": 0.5,
    },
}  # fmt: skip
Step = tuple[Trainee, list[Pairs]]


def trainee_of(kind: str, *, whole: bool, shape: str = "autoencoder") -> Trainee:
    """With every fourth latent dead from the start."""
    plan = SHAPES[shape].plan_of(PLAN)
    settings = {"kind": kind, **SETTINGS[kind]}
    config = TrainConfig.model_validate({"variants": [settings], "num_latents": F, "steps": 8})
    parameters = {
        "W_enc": numbers(F, D, seed=1, whole=whole),
        "W_dec": numbers(F, plan.d_decoded, seed=2, whole=whole),
        "b_enc": numbers(F, seed=3, whole=whole),
        "b_dec": numbers(plan.d_decoded, seed=4, whole=whole),
    }
    if plan.d_target is not None:
        parameters["b_in"] = numbers(D, seed=5, whole=whole)
    if plan.skip:
        parameters["W_skip"] = numbers(plan.d_decoded, D, seed=6, whole=whole)
    if not whole:
        parameters["W_dec"] /= parameters["W_dec"].norm(dim=1, keepdim=True)
    trainee = Trainee(config.variants[0], plan, 0, config.optimizer, parameters)
    trainee.rows_since_active[::4] = DEAD_AFTER
    return trainee


def centered(trainee: Trainee, *, seed: int, whole: bool) -> Tensor:
    return numbers(B, D, seed=seed, whole=whole) - input_bias(trainee.parameters)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Adds a batch on either backend to a trainee of its own; returns each with the codes it recorded."""
    recorded: list[Pairs] = []
    record = Batch.record

    def keep(self: Batch, codes: Pairs, error: Tensor) -> None:
        recorded.append(codes)
        record(self, codes, error)

    monkeypatch.setattr(Batch, "record", keep)

    def add(trainees: dict[str, Trainee], x: Tensor, step: int) -> list[Step]:
        found = []
        for backend, trainee in trainees.items():
            with use_backend(backend):
                target = x if trainee.plan.d_target is None else x[:, : trainee.plan.d_decoded].square()
                trainee.add_batch(x, target, step, DEAD_AFTER)
            found.append((trainee, recorded.copy()))
            recorded.clear()
        return found

    with torch.no_grad():
        yield add


def pair_of(kind: str, *, whole: bool, shape: str = "autoencoder") -> dict[str, Trainee]:
    return {name: trainee_of(kind, whole=whole, shape=shape) for name in ("triton", "compiled")}


def assert_near(got: Tensor, want: Tensor, what: str) -> None:
    if torch.equal(got, want):  # infinite ones, too
        return
    error = (got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-12)
    assert float(error) < 1e-5, f"{what}: relative error {float(error):.1e}"


def assert_same_step(ours: Step, theirs: Step) -> None:
    (one, codes), (other, wanted) = ours, theirs
    assert len(codes) == len(wanted)
    for got, want in zip(codes, wanted, strict=True):
        assert torch.equal(got.row_ptr, want.row_ptr)
        assert torch.equal(got.latent, want.latent)
        assert_near(got.value, want.value, "codes")
    losses, expected = one._outcome.losses, other._outcome.losses
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert_near(loss, expected[name], name)
    for name, gradient in one.gradients.items():
        assert_near(gradient, other.gradients[name], f"gradient of {name}")


def update_and_compare(one: Trainee, other: Trainee) -> None:
    """Both from the same gradients: Adam makes a whole step even of a gradient that is only rounding."""
    for name, gradient in one.gradients.items():
        other.gradients[name].copy_(gradient)
    other._outcome.through_encoder.copy_(one._outcome.through_encoder)
    for backend, trainee in (("triton", one), ("compiled", other)):
        with use_backend(backend):
            trainee.update(1.0)
    for group in ("parameters", "state", "optimizer", "dead"):
        tensors, expected = one.tensors()[group], other.tensors()[group]
        assert tensors.keys() | {HINT} == expected.keys() | {HINT}
        for name in tensors.keys() - {HINT}:  # which this backend does without
            tensor = tensors[name]
            assert_near(tensor, expected[name], name)
            expected[name].copy_(tensor)


def test_all_kinds_are_here() -> None:
    assert SETTINGS.keys() == VARIANTS.keys(), "add settings of the kind to SETTINGS here"


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("shape", ["autoencoder", "transcoder with skip", "crosscoder"])
def test_steps_are_those_of_the_compiled_loops(kind: str, shape: str, both: Any) -> None:
    trainees = pair_of(kind, whole=False, shape=shape)
    for step in range(2):
        ours, theirs = both(trainees, centered(trainees["triton"], seed=10 + step, whole=False), step)
        assert_same_step(ours, theirs)
        assert ("auxk" in ours[0]._outcome.losses) == ("auxk" in SETTINGS[kind])
        update_and_compare(ours[0], theirs[0])


@pytest.mark.parametrize("kind", SETTINGS)
def test_whole_numbers_are_selected_bit_for_bit(kind: str, both: Any) -> None:
    """They tie in many places, and every sum of them is exact."""
    trainees = pair_of(kind, whole=True)
    (_, codes), (_, wanted) = both(trainees, centered(trainees["triton"], seed=10, whole=True), 0)
    for got, want in zip(codes, wanted, strict=True):
        assert len(got) > 0
        assert torch.equal(got.row_ptr, want.row_ptr)
        assert torch.equal(got.latent, want.latent)
        assert torch.equal(got.value, want.value)


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "jumprelu"])
def test_a_batch_that_selects_nothing(kind: str, both: Any) -> None:
    trainees = pair_of(kind, whole=False)
    for trainee in trainees.values():
        trainee.parameters["b_enc"] -= 1000
    ours, theirs = both(trainees, centered(trainees["triton"], seed=10, whole=False), 0)
    assert [len(codes) for codes in ours[1]] == [0]
    assert_same_step(ours, theirs)
    update_and_compare(ours[0], theirs[0])


@pytest.mark.parametrize("kind", ["topk", "batch_topk", "feature_choice", "jumprelu", "relu"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy, in the interpreter
def test_a_nan_is_named_before_anything_changes(kind: str) -> None:
    trainee = trainee_of(kind, whole=False)
    before = {name: tensor.clone() for name, tensor in trainee.parameters.items()}
    x = centered(trainee, seed=10, whole=False)
    x[3, 5] = torch.nan
    with torch.no_grad(), use_backend("triton"), pytest.raises(DivergedError, match="row 3"):
        trainee.add_batch(x, x, 0, DEAD_AFTER)
    assert all(torch.equal(before[name], tensor) for name, tensor in trainee.parameters.items())
