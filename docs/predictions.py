"""How long a training step should take on GPUs that nobody has tried, by a roofline: the tables in
``devices.md`` (a test compares them).

    python docs/predictions.py

A step is a row of phases. Each has bytes that it moves, floating point operations, and kernels to launch; it
takes as long as the slower of the two, and the launches. The rates are those that the makers state, times
the shares below, which are assumed. Nothing here was measured.

Legend: B rows of a batch, D width of a row, F latents, P = k B selected pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

B, D, K = 4096, 768, 32
LATENTS = (24_576, 65_536)

# Assumed shares of the stated rates.
TENSOR_SHARE = 0.55  # of a Triton matrix product on tensor cores
FLOAT32_SHARE = 0.70  # of a float32 matrix product
MEMORY_SHARE = 0.85
BUS_SHARE = 0.80
FORWARD_SHARE = 0.40  # of the tensor cores, in the forward of a small language model
LAUNCH_SECONDS = 2.5e-6
CACHE_SPEEDUP = 2.0  # of reads that the L2 cache answers: the rows of a batch fit into it

# Assumed numbers of the algorithm.
CHUNK = 64  # scores whose largest bound is kept
CANDIDATES = 2  # pairs to compute exactly for each that is selected
ACTIVE_SHARE = 0.5  # of the latents, in the kinds with a penalty, at their start
ROWS_PER_CORE = 60_000  # a second that one core encodes, sorts, hashes and writes


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Rates as the maker states them, without sparsity. Operations and bytes per second."""

    name: str
    tensor: float  # bfloat16, added up in float32
    tensor32: float  # TF32
    float32: float
    memory: float
    bus: float  # to the GPU, one way


GPUS = (
    Gpu(name="A100 80 GB", tensor=312e12, tensor32=156e12, float32=19.5e12, memory=2.04e12, bus=32e9),
    Gpu(name="H100", tensor=989e12, tensor32=495e12, float32=67e12, memory=3.35e12, bus=64e9),
    Gpu(name="H200", tensor=989e12, tensor32=495e12, float32=67e12, memory=4.8e12, bus=64e9),
    Gpu(name="RTX 4090", tensor=165e12, tensor32=82.6e12, float32=82.6e12, memory=1.01e12, bus=32e9),
)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a step: ``bytes`` of the memory and ``cached_bytes`` of the L2 cache, and operations."""

    name: str
    bytes: float
    cached_bytes: float = 0
    tensor: float = 0
    float32: float = 0
    launches: int = 1

    def seconds(self, gpu: Gpu, *, tf32: bool = False) -> float:
        """The time on ``gpu``; with ``tf32`` float32 products run on tensor cores."""
        moving = (self.bytes + self.cached_bytes / CACHE_SPEEDUP) / (gpu.memory * MEMORY_SHARE)
        rate = gpu.tensor32 * TENSOR_SHARE if tf32 else gpu.float32 * FLOAT32_SHARE
        computing = self.tensor / (gpu.tensor * TENSOR_SHARE) + self.float32 / rate
        return max(moving, computing) + self.launches * LAUNCH_SECONDS


Step = Callable[[int], list[Phase]]  # of F


def selecting(
    F: int,
    *,
    wanted: float = K,
    decoded: float = K,
    per_latent: bool = False,
    width: int = D,
    rows: float = B,
) -> list[Phase]:
    """Screen, exact pre-activations of candidates, selection. ``wanted`` and ``decoded`` pairs of each row.

    ``per_latent``: the largest rows of every latent are looked for; their rows lie in the L2 cache.
    """
    candidates = CANDIDATES * wanted * rows
    rows_of_candidates = 4 * width * candidates
    return [
        Phase(name="round the batch", bytes=6 * rows * width),
        Phase(
            name="screening product", tensor=2 * rows * F * width,
            bytes=2 * rows * width + 2 * F * width + 2 * rows * F + 4 * rows * F / CHUNK, launches=2,
        ),
        Phase(name="candidates", bytes=2 * 4 * rows * F / CHUNK + 2 * CHUNK * wanted * rows + 16 * candidates,
              launches=6),
        Phase(
            name="exact pre-activations", bytes=0 if per_latent else rows_of_candidates,
            cached_bytes=rows_of_candidates if per_latent else 0, launches=2,
        ),
        Phase(name="selection", bytes=16 * candidates + 16 * decoded * rows, launches=6),
    ]  # fmt: skip


def learning(
    F: int,
    *,
    decoded: float = K,
    reconstructions: int = 1,
    width: int = D,
    rows: float = B,
    updated: float | None = None,
) -> list[Phase]:
    """From codes to updated weights. ``decoded`` pairs of each row, in all of the ``reconstructions``.

    ``updated`` latents get new weights: some of the F where processes share the rows.
    """
    rows_of_pairs = 4 * width * decoded * rows
    return [
        Phase(
            name="decode, error, slopes of codes",
            bytes=rows_of_pairs + reconstructions * 2 * 4 * rows * width,
            cached_bytes=rows_of_pairs, launches=2 * reconstructions,
        ),
        Phase(name="order by latents", bytes=64 * decoded * rows, launches=6),
        Phase(
            name="gradients of both matrices", bytes=reconstructions * 2 * 4 * F * width,
            cached_bytes=2 * rows_of_pairs, launches=4 * reconstructions,
        ),
        *updating(F if updated is None else updated, width),
    ]  # fmt: skip


def updating(F: float, width: int = D) -> list[Phase]:
    """The gradients' norm and Adam, which reads four matrices and writes three for each of the two."""
    return [
        Phase(name="norm of the gradients", bytes=3 * 4 * F * width, launches=4),
        Phase(name="Adam", bytes=2 * 7 * 4 * F * width + 2 * F * width, launches=6),
        Phase(name="counts, metrics", bytes=16 * F, launches=16),
    ]


def all_pre_activations(F: int, *, passes: int) -> Phase:
    """A float32 product, and ``passes`` over its result."""
    return Phase(
        name="all pre-activations", float32=2 * B * F * D, bytes=passes * 4 * B * F, launches=passes + 2
    )


def errors_of_prefixes(prefixes: int) -> Phase:
    """The error of every prefix of a nested dictionary: written, read and weighted."""
    return Phase(name="errors of prefixes", bytes=prefixes * 3 * 4 * B * D, launches=4)


def penalized(F: int, *, products: int) -> list[Phase]:
    """The kinds in which a penalty decides: so many latents are active that matrices are multiplied whole."""
    passes = 4 + 2 * products
    return [
        Phase(
            name=f"{products} float32 products", float32=products * 2 * B * F * D,
            bytes=passes * 4 * B * F + 20 * ACTIVE_SHARE * B * F, launches=4 * passes,
        ),
        *updating(F),
    ]  # fmt: skip


STEPS: dict[str, Step] = {
    "topk": lambda F: selecting(F) + learning(F),
    "multi_topk": lambda F: (
        selecting(F, wanted=4 * K, decoded=5 * K) + learning(F, decoded=5 * K, reconstructions=2)
    ),
    "batch_topk": lambda F: selecting(F) + learning(F),
    "matryoshka_batch_topk": lambda F: [*selecting(F), *learning(F), errors_of_prefixes(5)],
    "mutual_choice": lambda F: selecting(F) + learning(F),
    "feature_choice": lambda F: selecting(F, per_latent=True) + learning(F),
    "sampled": lambda F: [all_pre_activations(F, passes=2), *selecting(5 * K), *learning(F)],
    "probabilistic_topk": lambda F: [all_pre_activations(F, passes=4), *learning(F)],
    "relu": lambda F: penalized(F, products=5),
    "jumprelu": lambda F: penalized(F, products=5),
    "gated": lambda F: penalized(F, products=7),
}


def seconds(step: Step, F: int, gpu: Gpu, *, tf32: bool = False) -> float:
    """A whole step."""
    return sum(phase.seconds(gpu, tf32=tf32) for phase in step(F))


def tables() -> str:
    """Markdown."""
    return "\n\n".join([rates_table(), phases_table(), steps_table(), stages_table()])


def rates_table() -> str:
    """What is assumed of the devices."""
    lines = [
        "| stated by the maker | bf16 TFLOP/s | TF32 TFLOP/s | float32 TFLOP/s | memory TB/s | bus GB/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for gpu in GPUS:
        rates = (gpu.tensor / 1e12, gpu.tensor32 / 1e12, gpu.float32 / 1e12, gpu.memory / 1e12, gpu.bus / 1e9)
        lines.append(f"| {gpu.name} | {' | '.join(f'{rate:g}' for rate in rates)} |")
    shares = (TENSOR_SHARE, TENSOR_SHARE, FLOAT32_SHARE, MEMORY_SHARE, BUS_SHARE)
    lines.append(f"| share of it that is assumed | {' | '.join(f'{share:.0%}' for share in shares)} |")
    return "\n".join(lines)


def phases_table() -> str:
    """A TopK step, phase by phase."""
    F, gpu = LATENTS[0], GPUS[1]
    lines = [
        f"| TopK step, F = {F:,}, predicted for an {gpu.name} | GB moved | of it in the L2 cache | GFLOP | "
        "launches | ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    phases = STEPS["topk"](F)
    for phase in phases:
        moved = (phase.bytes + phase.cached_bytes) / 1e9
        lines.append(
            f"| {phase.name} | {moved:.3f} | {phase.cached_bytes / 1e9:.3f} "
            f"| {(phase.tensor + phase.float32) / 1e9:.0f} | {phase.launches} "
            f"| {1e3 * phase.seconds(gpu):.3f} |"
        )
    cached = sum(phase.cached_bytes for phase in phases)
    moved = sum(phase.bytes for phase in phases) + cached
    lines.append(
        f"| whole step | {moved / 1e9:.3f} | {cached / 1e9:.3f} "
        f"| {sum(p.tensor + p.float32 for p in phases) / 1e9:.0f} | {sum(p.launches for p in phases)} "
        f"| {1e3 * seconds(STEPS['topk'], F, gpu):.3f} |"
    )
    return "\n".join(lines)


def steps_table() -> str:
    """Every kind on every GPU."""
    heads = [f"{gpu.name}, F = {F:,}" for F in LATENTS for gpu in GPUS]
    lines = [
        f"| predicted milliseconds of a step | {' | '.join(heads)} |",
        f"| --- |{' ---: |' * len(heads)}",
    ]
    rows: list[tuple[str, Step, bool]] = [(kind, step, False) for kind, step in STEPS.items()]
    rows += [(f"{kind}, products in TF32", STEPS[kind], True) for kind in ("relu", "gated")]
    for name, step, tf32 in rows:
        cells = [format_ms(seconds(step, F, gpu, tf32=tf32)) for F in LATENTS for gpu in GPUS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def stages_table() -> str:
    """Feed and harvest: which of their limits is the lowest."""
    stored = 2 * D + 8  # a float16 row, its norm and its mean
    layers, context = 7, 1024  # of GPT-2 small up to the residual stream after block 6
    flops = layers * (
        2 * 12 * D**2 + 2 * 2 * D * context / 2
    )  # of a token; attention sees half of the context
    lines = [
        f"| predicted thousands of rows a second | {' | '.join(gpu.name for gpu in GPUS)} |",
        f"| --- |{' ---: |' * len(GPUS)}",
    ]
    limits: dict[str, Callable[[Gpu], float]] = {
        f"a TopK step at F = {LATENTS[0]:,} uses": lambda gpu: B / seconds(STEPS["topk"], LATENTS[0], gpu),
        f"the bus brings, {stored:,} bytes a row": lambda gpu: gpu.bus * BUS_SHARE / stored,
        f"GPT-2 small gives at block 6, {flops / 1e9:.2f} GFLOP a token": lambda gpu: (
            gpu.tensor * FORWARD_SHARE / flops
        ),
        f"16 cores encode, shuffle and write, {ROWS_PER_CORE:,} each": lambda gpu: 16.0 * ROWS_PER_CORE,
    }
    for name, limit in limits.items():
        lines.append(f"| {name} | {' | '.join(f'{limit(gpu) / 1e3:,.0f}' for gpu in GPUS)} |")
    return "\n".join(lines)


def format_ms(value: float) -> str:
    """Milliseconds with two significant digits, or whole ones: a prediction has no more."""
    ms = 1e3 * value
    return f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}"


if __name__ == "__main__":
    print(tables())
