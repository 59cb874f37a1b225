"""One training step: ours, its encoder's matrix product alone, and other packages', taken in turns.

    python benchmarks/step.py [--quick] [--variant topk|batch_topk|mutual_choice|feature_choice] [--dead
        SHARE] [--latents F] [--rows B] [--width D] [--k K] [--rounds N] [--threads N] [--peer-python PATH]...
        [--peer NAME]...

Every round runs each of them once on the same rows, so that a busy machine slows all alike. The ratios of
processor time are disturbed less by other programs. ``--peer-python`` is the Python of an environment with
sae-lens, dictionary-learning and eai-sparsify (or some of them; may be given several times); packages that
are nowhere are left out. ``--dead 0.1`` declares a tenth of the latents dead before every step, so that
AuxK works in all of them. The extra memory is what a step needs above weights, gradients, moments and the
batch.
"""

import argparse
import ctypes
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import torch
from shared.measuring import Cost, Report, parser, ratios, take_turns, timed

from saecache.doctor.measurements.peers import PEERS, Peer
from saecache.train.backends.scratch import release_scratch
from saecache.train.engine.optimizer import OptimizerConfig
from saecache.train.engine.trainee import Trainee
from saecache.train.runs.initialisation import initial_parameters
from saecache.train.variants.base.variant import Plan
from saecache.train.variants.batch_topk import BatchTopK
from saecache.train.variants.feature_choice import FeatureChoice
from saecache.train.variants.losses.auxk import AuxK
from saecache.train.variants.mutual_choice import MutualChoice
from saecache.train.variants.topk import TopK

PEER_SETTINGS = ("variant", "latents", "rows", "width", "k", "dead", "threads")
DEAD_AFTER_ROWS = 10_000_000
WARM_UP = 2  # rounds that do not count: compilation, first touch of memory, the first guess of a threshold


Step = Callable[[int], Cost]  # of the number of the round


def unit_rows(rows: int, width: int) -> torch.Tensor:
    """Two batches, [2, rows, width]. The peers make the same ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, width, generator=generator)
    return x / x.norm(dim=2, keepdim=True)


def make_trainee(settings: argparse.Namespace) -> Trainee:
    plan = Plan(
        d_model=settings.width, num_latents=settings.latents, batch_rows=settings.rows, num_steps=10**6
    )
    auxk = AuxK(k=settings.width // 2)  # as many as the other packages take
    kinds = {
        "topk": lambda: TopK(k=settings.k, auxk=auxk),
        "batch_topk": lambda: BatchTopK(k=settings.k, auxk=auxk),
        "mutual_choice": lambda: MutualChoice(k=settings.k),
        "feature_choice": lambda: FeatureChoice(k=settings.k),
    }
    variant = kinds[settings.variant]()
    if problems := variant.problems(plan):
        raise SystemExit("; ".join(problems))
    return Trainee(
        variant, plan, 0, OptimizerConfig(), initial_parameters(plan, 0, torch.zeros(plan.d_model))
    )


def our_step(trainee: Trainee, x: torch.Tensor, dead: float) -> Step:
    x_centered = torch.empty_like(x[0])
    num_dead = int(dead * trainee.plan.num_latents)

    def work(i: int) -> None:
        torch.sub(x[i % len(x)], trainee.parameters["b_dec"], out=x_centered)
        trainee.add_batch(x_centered, x_centered, i, DEAD_AFTER_ROWS)
        trainee.update(1.0)

    def step(i: int) -> Cost:
        trainee.rows_since_active[:num_dead] = 2 * DEAD_AFTER_ROWS
        return timed(lambda: work(i))

    return step


def product(x: torch.Tensor, W: torch.Tensor, dtype: torch.dtype) -> Step:
    """All pre-activations of a batch into a buffer that is there already: the least a dense encoder does."""
    x, W = x.to(dtype), W.to(dtype)
    out = torch.empty(x.shape[1], W.shape[0], dtype=dtype)
    return lambda i: timed(lambda: torch.mm(x[i % len(x)], W.T, out=out))


def start_peers(settings: argparse.Namespace) -> dict[str, Peer]:
    """Each package from the first environment that has it."""
    found: dict[str, Peer] = {}
    for name in settings.peer if settings.variant in ("topk", "batch_topk") else ():
        reasons = []
        for python in settings.peer_python:
            peer = Peer(python, name, {key: getattr(settings, key) for key in PEER_SETTINGS})
            if peer.missing is None:
                found[name] = peer
                break
            reasons.append(peer.missing)
            peer.close()
        else:
            print(f"{name}: left out ({'; '.join(reasons) or 'no --peer-python'})")
    return found


def extra_bytes(step: Step) -> int | None:
    """The most memory that a step needs beyond what is there before it; None where the system does not
    say.
    """
    step(0)  # touches the moments
    release_scratch()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except (OSError, AttributeError):
        return None
    step(1)
    return memory("VmHWM") - before


def memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}")


def parse() -> argparse.Namespace:
    options = parser(__doc__)
    variants = ("topk", "batch_topk", "mutual_choice", "feature_choice")
    options.add_argument("--variant", choices=variants, default="topk")
    options.add_argument("--latents", type=int, default=24576)
    options.add_argument("--rows", type=int, default=4096)
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--k", type=int, default=32)
    options.add_argument(
        "--dead", type=float, default=0.0, help="share of latents that are dead at every step"
    )
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--peer-python", type=Path, action="append", default=[])
    options.add_argument("--peer", choices=PEERS, action="append", help="only these; all without it")
    settings = options.parse_args()
    settings.peer = settings.peer or PEERS
    if settings.quick:
        settings.latents, settings.rows, settings.width, settings.rounds = 8192, 1024, 256, 3
    return settings


@torch.no_grad()
def main() -> None:
    settings = parse()
    torch.set_num_threads(settings.threads)
    report = Report(
        "step",
        settings,
        f"{settings.variant}, F = {settings.latents:,}, B = {settings.rows:,}, D = {settings.width}, "
        f"k = {settings.k}, {settings.dead:.0%} of the latents dead, {settings.threads} threads",
    )
    x = unit_rows(settings.rows, settings.width)
    trainee = make_trainee(settings)
    steps: dict[str, Step] = {"saecache": our_step(trainee, x, settings.dead)}
    more = extra_bytes(steps["saecache"])
    W_enc = trainee.parameters["W_enc"]
    steps["product, float32"] = product(x, W_enc, torch.float32)
    steps["product, bfloat16"] = product(x, W_enc, torch.bfloat16)
    peers = start_peers(settings)
    steps |= peers
    numbers = {name: count() for name in steps}
    turns = {name: partial(lambda name: steps[name](next(numbers[name])), name) for name in steps}
    costs = take_turns(turns, settings.rounds, WARM_UP)
    for peer in peers.values():
        peer.close()
    add_figures(report, costs)
    groups = (trainee.parameters, trainee.gradients, trainee.optimizer.tensors())
    held = sum(t.numel() * t.element_size() for group in groups for t in group.values())
    if more is not None:
        report.add("of weights, gradients and moments", [more / held], group="extra memory of a step")
    report.save()


def add_figures(report: Report, costs: dict[str, list[Cost]]) -> None:
    for name, found in costs.items():
        report.add(name, (1e3 * cost.seconds for cost in found), "ms", "time of a step")
    for i, group in enumerate(("ratio of times", "ratio of processor times")):
        for name, other in (("saecache", "product, float32"), *((peer, "saecache") for peer in PEERS)):
            if name in costs:
                values = ratios([cost[i] for cost in costs[name]], [cost[i] for cost in costs[other]])
                report.add(f"{name} / {other}", values, group=group)


if __name__ == "__main__":
    main()
