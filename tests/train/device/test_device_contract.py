"""The device contract: on a device that is not the CPU every kind trains, resumes, calibrates, encodes and is
evaluated, no tensor of main memory meets one of the device, and the results are those of the CPU.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import metrics, rewind, run_bytes
from saecache.testing.shapes import SHAPES
from saecache.testing.stepping import take_step
from saecache.train import TrainConfig, load_sae, run
from saecache.train.backends.choice import use_backend
from saecache.train.engine.metrics import heldout_metrics
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.trainee import DivergedError, Trainee
from saecache.train.runs.initialisation import initial_parameters
from saecache.train.sae import SAE
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan

from .kinds import SETTINGS, settings_of
from .kinds import test_all_kinds_are_here as test_all_kinds_are_here
from .pretended_device import DEVICE, PretendedTensor, WrongDeviceError, pretended_device, to_host

Config = Callable[..., TrainConfig]
TIMES = ("rows_per_second", "data_wait_fraction", "seconds")


def config_of(make_config: Config, name: str, shape: str, device: str) -> TrainConfig:
    """Five steps with dead latents from the third on; finished SAEs are calibrated where they can be."""
    settings = settings_of(name)
    calibration = {"rows": 64, "l0": 4} if VARIANTS[settings["kind"]].inference == "threshold" else None
    return make_config(
        settings,
        device=device,
        steps=5,
        calibration=calibration,
        log={"every_steps": 3, "progress": False, "heldout_rows": 64},
        **SHAPES[shape].run,
    )


def error_between(got: Tensor, want: Tensor) -> float:
    got, want = to_host(got).double(), to_host(want).double()
    assert got.shape == want.shape
    finite = want.isfinite()
    assert torch.equal(got.isfinite(), finite)
    if not want.numel():
        return 0.0
    return float((got[finite] - want[finite]).norm() / want[finite].norm().clamp_min(1e-12))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "shape", ["autoencoder", "transcoder with skip", "crosscoder", "cross-layer transcoder"]
)
def test_a_run_is_the_cpus_and_resumes_exactly(
    name: str, shape: str, cache_of_two_hooks: ActivationCache, make_config: Config, tmp_path: Path
) -> None:
    cache = cache_of_two_hooks
    with use_backend("plain"):
        (wanted,) = run(config_of(make_config, name, shape, "cpu"), cache, tmp_path / "cpu").saes.values()
    config = config_of(make_config, name, shape, "gpu")
    variant = config.variants[0].run_name
    with pretended_device() as counts:
        first = run(config, cache, tmp_path / "gpu")
        assert counts.launches, "it ran on the device"
        before = run_bytes(tmp_path / "gpu")
        rewind(tmp_path / "gpu", variant, to_step=3)
        run(config, cache, tmp_path / "gpu")
    assert not first.failed
    assert run_bytes(tmp_path / "gpu") == before
    for got, want in zip(metrics(tmp_path / "gpu"), metrics(tmp_path / "cpu"), strict=True):
        for key in want.keys() - {"variant", *TIMES}:
            assert got[key] == pytest.approx(want[key], rel=2e-3, abs=1e-6), key
    ours, theirs = load_sae(first.saes[variant]), load_sae(wanted)
    for key, tensor in theirs.named_buffers():
        assert error_between(ours.get_buffer(key), tensor) < 2e-3, key


@pytest.fixture(scope="module")
def trained(cache: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with an SAE of every kind."""
    folder = tmp_path_factory.mktemp("saes")
    variants = [{**settings_of(name), "name": name.replace(" ", "_")} for name in SETTINGS]
    config = TrainConfig.model_validate(
        {
            "variants": variants,
            "num_latents": 96,
            "batch_rows": 256,
            "steps": 3,
            "log": {"progress": False},
            "device": "cpu",
        }
    )
    return run(config, cache, folder / "run").saes


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("rows", [0, 1, 50])
def test_encoding_and_evaluating(
    name: str, rows: int, cache: ActivationCache, trained: dict[str, Path]
) -> None:
    folder = trained[name.replace(" ", "_")]
    x = cache.rows("resid", torch.arange(rows).numpy(), "heldout", "unit")
    with use_backend("plain"):
        wanted = results_of(load_sae(folder), x)
    with pretended_device():
        sae = load_sae(folder, "gpu")
        found = results_of(sae, x.to(DEVICE))
        assert all(isinstance(tensor, PretendedTensor) for tensor in sae.buffers())
    for key, want in wanted.items():
        if isinstance(want, Tensor):
            assert error_between(found[key], want) < 1e-5, key
        else:
            assert found[key] == pytest.approx(want, rel=1e-4), key


def results_of(sae: SAE, x: Tensor) -> dict[str, Any]:
    codes = sae.encode_sparse(x)
    found: dict[str, Any] = {
        "rows": codes.row_ptr,
        "latents": codes.latent,
        "values": codes.value,
        "dense": sae.encode(x),
        "decoded": sae.decode(codes),
        "reconstructed": sae(x),
        "raw": sae(3 * x + 1, input="raw"),
    }
    if len(x):
        found |= heldout_metrics(sae, x)
    if len(x) > 1:  # the entropy of one row is 0 but for rounding, which decides then
        found["as trained"] = sae.encode(x, as_trained=True)
    return found


def trainee_on(device: torch.device | str, name: str, rows: int) -> Trainee:
    plan = Plan(d_model=24, num_latents=96, batch_rows=rows, num_steps=8)
    variant = VARIANTS[name.split()[0]].model_validate(settings_of(name))
    parameters = initial_parameters(plan, 0, torch.full((24,), 0.1))
    trainee = Trainee(variant, plan, 0, OptimizerConfig(), {n: t.to(device) for n, t in parameters.items()})
    trainee.rows_since_active += (torch.arange(96) % 3 == 0).long().to(device) * 1000
    return trainee


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("rows", "lowered"), [(1, 0.0), (40, 1000.0)])
def test_steps_of_one_row_and_steps_without_pairs(name: str, rows: int, lowered: float) -> None:
    if rows == 1 and name.startswith(("feature_choice", "sampled")):
        pytest.skip("needs more rows")
    x = torch.randn(rows, 24, generator=torch.Generator().manual_seed(1))

    def steps(device: torch.device | str) -> Trainee:
        trainee = trainee_on(device, name, rows)
        trainee.parameters["b_enc"] -= lowered
        for step in range(2):
            take_step(trainee, x.to(device) - trainee.parameters["b_dec"], step, 1.0, 1000)
        trainee.settle()
        return trainee

    with use_backend("plain"):
        wanted = steps("cpu")
    with pretended_device():
        found = steps(DEVICE)
        groups = found.tensors()
    for group in ("parameters", "state", "dead"):
        for key, want in wanted.tensors()[group].items():
            assert isinstance(groups[group][key], PretendedTensor), key
            assert error_between(groups[group][key], want) < 2e-3, key


@torch.no_grad()
def test_a_step_that_diverges_is_found_one_step_later_and_changes_nothing() -> None:
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    with pretended_device():
        trainee = trainee_on(DEVICE, "topk", 40)

        def add(step: int) -> None:
            centered = x.to(DEVICE) - trainee.parameters["b_dec"]
            trainee.add_batch(centered, centered, step, 1000)

        add(0)
        trainee.update(1.0)
        before = {name: to_host(tensor).clone() for name, tensor in trainee.parameters.items()}
        add(1)
        trainee.gradients["W_dec"][3, 4] = torch.inf
        trainee.update(1.0)  # the host does not know yet
        add(2)
        with pytest.raises(DivergedError, match=r"the gradient's norm (inf|nan)") as caught:
            trainee.update(1.0)
        assert caught.value.number == 1, "the step at fault, not the one in which it was found"
        assert all(torch.equal(to_host(trainee.parameters[name]), before[name]) for name in before)
        assert int(trainee.interval.steps) == 1


@torch.no_grad()
def test_nan_rows_are_named_after_an_unread_step() -> None:
    x = torch.randn(40, 24, generator=torch.Generator().manual_seed(1))
    with pretended_device():
        trainee = trainee_on(DEVICE, "topk", 40)
        take_step(trainee, x.to(DEVICE), 0, 1.0, 1000)
        x[3, 5] = torch.nan
        with pytest.raises(DivergedError, match="row 3") as caught:
            take_step(trainee, x.to(DEVICE), 1, 1.0, 1000)
        assert caught.value.number == 1
        assert int(trainee.interval.steps) == 1, "the step before counts"


def test_a_failure_names_its_step_in_the_run(
    cache: ActivationCache, make_config: Config, tmp_path: Path
) -> None:
    """As on the CPU (test_accumulation.py): the device finds it later, and says the same."""
    wild = {"kind": "topk", "k": 4, "name": "wild", "optimizer": {"learning_rate": 1e37}}
    options: dict[str, Any] = {"batch_rows": 128, "accumulate_batches": 2, "checkpoint": {"every_steps": 9}}
    with use_backend("plain"):
        want = run(make_config({"kind": "topk", "k": 4}, wild, **options), cache, tmp_path / "cpu").failed
    with pretended_device():
        config = make_config({"kind": "topk", "k": 4}, wild, device="gpu", **options)
        got = run(config, cache, tmp_path / "gpu").failed
    assert got.keys() == want.keys() == {"wild"}
    assert got["wild"].partition("in step")[2] == want["wild"].partition("in step")[2]


def test_the_device_refuses_tensors_of_main_memory() -> None:
    with pretended_device() as counts:
        here, there = torch.ones(3), torch.ones(3, device=DEVICE)
        with pytest.raises(WrongDeviceError, match="add"):
            there + here
        with pytest.raises(WrongDeviceError, match="index"):
            there[torch.tensor([1])]
        counts.reset()
        assert float((there * 2).sum()) == 6
        assert sum(counts.launches.values()) == 2 and sum(counts.syncs.values()) == 1
        assert sum(counts.bytes.values()) == 12 + 12 + 12 + 4


def test_numbers_on_their_way_to_the_host_are_not_there_yet() -> None:
    from saecache.train.engine.late import LateRead

    with pretended_device() as counts:
        read = LateRead(torch.ones(2, device=DEVICE))
        assert not counts.syncs
        assert bool(read._values.isnan().all()), "who reads before the event reads nothing"
        assert read.numbers().tolist() == [1.0, 1.0]
