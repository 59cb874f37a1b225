"""A step of every kind in torch operations that give the same bits each time, on a GPU too.

torch refuses an operation only where it would run nondeterministically: bincount with weights, for example,
on a GPU alone. So the operations themselves are also looked at. Legend: B rows, F latents.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saecache.testing.stepping import take_step
from saecache.train import TrainConfig
from saecache.train.backends import sources
from saecache.train.backends.choice import use_backend
from saecache.train.engine.trainee import Trainee
from saecache.train.variants import VARIANTS
from saecache.train.variants.base.variant import Plan

B, F, D = 40, 64, 16
PLAN = Plan(d_model=D, num_latents=F, batch_rows=B, num_steps=8)
AUXK: dict[str, Any] = {"auxk": {"coefficient": 0.1, "k": 4}}
SETTINGS: dict[str, dict[str, Any]] = {
    "topk": {"k": 3, **AUXK},
    "batch_topk": {"k": 3, **AUXK},
    "multi_topk": {"k": 3, **AUXK},
    "matryoshka_batch_topk": {"k": 3, "prefixes": [0.25, 1.0], **AUXK},
    "mutual_choice": {
        "k": 3, **AUXK, "aux_zipf": {"coefficient": 0.2, "k": 3}, "nfm": {"coefficient": 0.01},
        "nfm_inf": {"coefficient": 0.3, "sample": 20}, "window_rows": 20,
    },
    "feature_choice": {"k": 3, "zipf": {"beta": 3.0}, "mutual_choice": {"steps": 1}},
    "sampled": {"k": 3, "pool_factor": 2.5, **AUXK},
    "sampled uniform": {"k": 3, "pool_factor": 2.5, "score": "uniform", **AUXK},
    "probabilistic_topk": {"k": 3, "warmup": 2},
    "relu": {
        "decoder": "free", "l1": {"coefficient": 0.02},
        "resampling": {"every_steps": 1, "times": 2, "idle_steps": 1},
    },
    "gated": {"l1": {"coefficient": 0.02}},
    "jumprelu": {"penalty": {"kind": "tanh", "coefficient": 0.01}, "bandwidth": 0.5},
}  # fmt: skip
FLOATS = (torch.float32, torch.float64)


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # other threads would be out of the watch's sight
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


def trainee_of(name: str) -> Trainee:
    kind = name.split()[0]
    settings = {"kind": kind, **SETTINGS[name]}
    config = TrainConfig.model_validate({"variants": [settings], "num_latents": F, "steps": 8})
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    W_dec = normal(F, D)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    parameters = {"W_enc": W_dec + 0.1 * normal(F, D), "W_dec": W_dec, "b_enc": 0.1 * normal(F)}
    trainee = Trainee(config.variants[0], PLAN, 3, config.optimizer, {**parameters, "b_dec": normal(D)})
    trainee.rows_since_active[::4] = 1000
    return trainee


def steps_of(name: str) -> Trainee:
    """Three steps; every second latent is inactive, so that there is something to resample."""
    trainee = trainee_of(name)
    trainee.parameters["b_enc"][::2] -= 100
    for step in range(3):
        x = torch.randn(B, D, generator=torch.Generator().manual_seed(step))
        with use_backend("plain"):
            take_step(trainee, x - trainee.parameters["b_dec"], step, 1.0, 500)
    return trainee


def test_all_kinds_are_here() -> None:
    assert {name.split()[0] for name in SETTINGS} == set(VARIANTS), (
        "add settings of the kind to SETTINGS here"
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_give_the_same_bits_again(name: str) -> None:
    first, again = steps_of(name).tensors(), steps_of(name).tensors()
    for group, tensors in first.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, again[group][key]), f"{group}.{key}"


class Watch(TorchDispatchMode):
    """Collects the operations whose result on a GPU depends on the order of atomics, or that torch refuses.

    This is the list of torch.use_deterministic_algorithms, for tensors without gradients.
    """

    always = (
        "put_", "put", "histc", "kthvalue", "median", "nanmedian", "index_add", "index_add_", "scatter_add",
        "scatter_add_", "index_reduce", "index_reduce_", "_embedding_bag_backward",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        self.seen.add(name)
        given = [*args, *kwargs.values()]
        if (
            name in self.always
            or (name == "bincount" and any(isinstance(g, Tensor) for g in given[1:]))
            or (name in ("cumsum", "cumsum_", "cumprod", "logcumsumexp") and args[0].dtype in FLOATS)
            or (name.startswith(("index_put", "_index_put")) and True in given[3:])
            or (
                name.startswith("scatter_reduce")
                and not {"amin", "amax"} & {g for g in given if type(g) is str}
            )
            or (name.startswith("scatter") and "reduce" in kwargs)
            or (
                name.startswith("_embedding_bag") and kwargs.get("mode", args[4] if len(args) > 4 else 0) == 2
            )
        ):
            self.refused.add(str(func))
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", SETTINGS)
def test_no_operation_depends_on_the_order_of_atomics(name: str) -> None:
    with Watch() as watch:
        steps_of(name)
    assert not watch.refused
    assert {"mm", "_embedding_bag_forward_only", "index_select"} <= watch.seen


def test_the_watch_sees_them() -> None:
    places, values = torch.tensor([0, 1, 1]), torch.tensor([1.0, 2.0, 3.0])
    with Watch() as watch:
        torch.bincount(places, weights=values)
        torch.zeros(3).index_add_(0, places, values)
        torch.zeros(3).scatter_add_(0, places, values)
        torch.zeros(3).scatter_reduce_(0, places, values, "sum")
        torch.zeros(3).index_put_((places,), values, accumulate=True)
        values.cumsum(0)
    assert len(watch.refused) == 6
    with Watch() as watch:
        torch.bincount(places)
        places.cumsum(0)
        torch.zeros(3).scatter_reduce_(0, places, values, "amin")
        torch.zeros(3)[places] = 1.0
    assert not watch.refused


@pytest.mark.parametrize("name", ["probabilistic_topk", "sampled uniform"])
def test_draws_do_not_depend_on_the_size_of_blocks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = steps_of(name).tensors()["parameters"]
    monkeypatch.setattr(sources, "block_rows", lambda *_: 7)
    parts = steps_of(name).tensors()["parameters"]
    for key, tensor in whole.items():
        torch.testing.assert_close(parts[key], tensor, rtol=1e-4, atol=1e-5)
