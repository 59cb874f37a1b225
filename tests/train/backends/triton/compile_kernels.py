"""Compiles every kernel that the operations start, for GPUs that are not here; prints what came out as JSON.

Runs in a process of its own, without Triton's interpreter: the operations run on tensors in main memory while
:func:`launch` only writes down what it was asked to start. An explicit target needs no driver, and Triton's
wheel holds ptxas. Arguments: compute capabilities, such as 90; ``--once`` compiles one variant of each kernel
only, but all of the kernel that encodes the rows of a harvest.
"""

import io
import json
import re
import sys
from contextlib import redirect_stdout
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saecache.store.encoding import triton_encode
from saecache.store.encoding.records import RecordLayout
from saecache.train.backends.gates import Gates
from saecache.train.backends.protocol import AdamSettings
from saecache.train.backends.sources import Scores
from saecache.train.backends.triton import (
    above,
    adam,
    candidates,
    compact,
    decode,
    exact,
    gates,
    given,
    gradients,
    largest,
    largest_of_batch,
    nested,
    order,
    prepare,
    random_numbers,
    rounding,
    row_sums,
    screen,
    sums,
    transpose,
)
from saecache.train.pairs import Pairs

MODULES = (
    above, adam, candidates, compact, decode, exact, gates, given, gradients, largest, largest_of_batch,
    nested, order, prepare, random_numbers, rounding, row_sums, screen, sums, transpose,
    triton_encode,
)  # fmt: skip
FLAGS = ("num_warps", "num_stages", "enable_fp_fusion")
TYPES = {
    torch.float32: "*fp32", torch.float64: "*fp64", torch.bfloat16: "*bf16", torch.int64: "*i64",
    torch.int32: "*i32", torch.int8: "*i8", torch.bool: "*i1", torch.float16: "*fp16", torch.int16: "*i16",
}  # fmt: skip
F, D = 4096, 768
started: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}


def write_down(function: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    fixed = {n: v for n, v in options.items() if n not in FLAGS}
    types = [
        TYPES[a.dtype] if isinstance(a, torch.Tensor) else "1" if a == 1 else str(type(a)) for a in arguments
    ]
    started.setdefault(f"{function.__name__} {fixed} {' '.join(types)}", (function, arguments, options))


def run_operations(B: int, K: int) -> None:
    """Every operation, in every way that starts another kernel; nothing is computed."""
    x, W, b = torch.zeros(B, D), torch.zeros(F, D), torch.zeros(F)
    ptr = torch.arange(B + 1) * K
    pairs = Pairs(row_ptr=ptr, latent=torch.arange(B * K), value=torch.zeros(B * K), num_latents=F)
    exact.sddmm(pairs, x, W)
    exact.exact(pairs, x, W, b)
    for bias, of in ((None, "latent"), (b, "latent"), (torch.zeros(B), "row")):
        exact.exact_matrix(x, W, bias, of)
    decode.decode(pairs, W)
    decode.decode(pairs, W, b[:D])
    decode.reconstruct(pairs, W, x)
    for add in (False, True):
        gradients.accumulate_by_latent(pairs, pairs.value, x, W, add=add)
        gradients.weight_gradients(pairs, pairs.value, pairs.value, x, x, W, W, b, add=add)
        gradients.weight_gradients(
            pairs, pairs.value, pairs.value, x, x, W, W, b, add=add, add_bias=False, scale=0.5
        )
    rings = Pairs(
        row_ptr=torch.arange(2 * B + 1) * K // 2, latent=pairs.latent, value=pairs.value, num_latents=F
    )
    nested.reconstruct_nested(rings, W, x, (1.0, 2.0), 0.5)
    gradients.weight_gradients(rings, pairs.value, pairs.value, x, x.repeat(2, 1), W, W, b, add_bias=False)
    whole = torch.zeros(B, F)
    for layer_norm, weight, draw in ((True, 1e-4, (1, 2, 3, 0)), (False, 0.0, None), (True, 0.0, None)):
        settings = Gates(beta=b[0], magnitude_weight=weight, layer_norm=layer_norm, draw=draw)
        gates.rank_gates(whole, settings)
    for entropy in (False, True):
        row_sums.sum_rows(whole, positive=True, entropy=entropy)
    given.largest_per_row_of_scores(Scores(lambda: iter([(0, whole)]), B, F, whole.device), K)
    sums.sum_per_latent(pairs, pairs.value)
    random_numbers.random_uniform(1, 2, 3, B, F, "cpu")
    settings = AdamSettings(learning_rate=0.1, betas=(0.9, 0.99), eps=1e-8)
    for unit in (False, True):
        adam.gradient_norm(W, W if unit else None)
        for refresh in (None, rounding.round_latents(W)):
            adam.adam_step(W, W, W, W, 1, settings, unit_rows=unit, refresh=refresh)
    for limit in (None, 1.0):
        adam.clip(torch.zeros(3, dtype=torch.float64), limit, torch.zeros((), dtype=torch.float64))
    adam.adam_numbers(settings, torch.tensor(3), W.device)
    sums.count_active(pairs)
    largest.queue_largest_per_row(x, W, b, K)
    wide = torch.ones(F, dtype=torch.int64)
    factors = prepare.factors_of(x, W, b, None)
    factors.limits()
    factors.limits(ptr[-1:], kept=ptr[-1:])
    factors.limits(ptr[-1:], values=x.view(-1))
    factors.limits(above=ptr[1:], room=4, values=x.view(-1))
    for pays in (True, False):
        largest.screening_pays = lambda *_, pays=pays: pays
        largest.queue_largest_per_row(x, W, b, K)
        largest._select(factors, wide, F, torch.arange(F + 1), swapped=True)
    values, marked = torch.zeros(B, F), torch.zeros(B * F, dtype=torch.bool)
    compact.compact_matrix(values, marked, 3)
    found = screen.screen(factors.x_rows, factors.W_rows, b)
    least = candidates.least_of_all(found, 9)
    for limit, of in ((least, "all"), (b, "column")):
        some = candidates.candidates(found, limit, of, 999, x, W)
    compact.compact_candidates(some, some.value > 0, F, 9)
    compact.largest_candidates(some, B, F, 9)
    compact.largest_of_matrix(values, 9)


def encode_rows() -> None:
    """The encoder of a harvest, for the number types of models and of caches."""
    triton_encode.ROWS_OF_PROGRAM["cpu"] = triton_encode.ROWS_OF_PROGRAM["cuda"]
    stored = ("float16", "bfloat16", "float32", "int8")
    ways = [(D, torch.bfloat16, dtype, unit) for dtype in stored for unit in (True, False)]
    ways += [(D, dtype, "float16", True) for dtype in (torch.float16, torch.float32)]
    ways += [(width, torch.bfloat16, "float16", True) for width in (100, 2048)]
    for width, dtype, kind, unit in ways:
        layout = RecordLayout(width, kind)
        x, bad = torch.zeros(64, width, dtype=dtype), torch.zeros(64, dtype=torch.int8)
        records = torch.zeros(64, layout.record_bytes, dtype=torch.uint8)
        triton_encode.encode_on_device(x, records, bad, layout, unit)


def compiled(function: Any, arguments: tuple[Any, ...], options: dict[str, Any], capability: int) -> Any:
    names = [p.name for p in function.params]
    values = dict(zip(names, arguments, strict=False))
    constants = {n: v for n, v in options.items() if n in names}
    if "INTERPRETED" in constants:
        constants["INTERPRETED"] = False
    signature, attributes = {}, {}
    for place, name in enumerate(names):
        value = values.get(name)
        if name in constants:
            signature[name] = "constexpr"
            continue
        if isinstance(value, int) and value == 1:  # which a launch makes a constant, too
            signature[name], constants[name] = "constexpr", 1
        elif isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    flags = {"enable_fp_fusion": False} | {n: v for n, v in options.items() if n in FLAGS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=flags)


def memory_of(log: str) -> dict[str, int]:
    """Bytes of local memory that each thread uses, by what for, as ptxas says it.

    Only spills are registers that did not fit. A stack frame without spills holds an array that is indexed at
    run time, or is there for alignment.
    """
    found = dict.fromkeys(("stack frame", "spill stores", "spill loads"), 0)
    for number, what in re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", log):
        found[what] = max(found[what], int(number))
    return found


def main() -> None:
    knobs.nvidia.dump_ptxas_log = knobs.compilation.always_compile = True
    torch.empty = torch.zeros  # sizes that no kernel computed must not be random
    for module in MODULES:
        if hasattr(module, "launch"):
            module.launch = write_down
    report = []
    once = "--once" in sys.argv
    for capability in map(int, (word for word in sys.argv[1:] if word[0] != "-")):
        started.clear()
        screen.product_options = lambda _, capability=capability: dict(screen.options_of(capability))
        encode_rows()
        run_operations(64, 4)
        if not once:
            run_operations(1, 1)
        names = set()
        for label, (function, arguments, options) in started.items():
            name = (function.__module__, function.__name__)
            encodes = function.__module__ == triton_encode.__name__
            if once and name in names and not encodes:
                continue
            names.add(name)
            line: dict[str, Any] = {"kernel": label, "capability": capability, "encodes": encodes}
            line["module"] = function.__module__
            try:
                with redirect_stdout(io.StringIO()) as log:
                    out = compiled(function, arguments, options, capability)
                assert "spill" in log.getvalue(), f"ptxas did not say whether it spills: {log.getvalue()!r}"
                ptx = out.asm["ptx"]
                line |= {
                    "shared": out.metadata.shared,
                    "cuts_numbers": "arith.trunci" in out.asm["ttir"],
                    **memory_of(log.getvalue()),
                    "mma": [word for word in ("mma.sync", "wgmma", "tcgen05.mma") if word in ptx],
                    "flushes": ".ftz" in ptx,
                    "approximates": ".approx" in ptx or ".full" in ptx,
                    "fuses": bool(re.search(r"\bfma\.", ptx)),
                    "float_atomics": bool(re.search(r"\b(atom|red)\.[^;]*\.[b]?f(16|32|64)", ptx)),
                }
            except Exception as error:  # noqa: BLE001 - the report names every kernel that fails
                line["error"] = f"{type(error).__name__}: {error}"
            report.append(line)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    with torch.no_grad():
        main()
