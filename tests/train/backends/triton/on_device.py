"""On a real GPU: every kernel against plain torch, and how long it takes. Prints one JSON.

Needs torch, triton and numpy, and this repository around this file; no pytest, no network. A kernel that
fails is reported with its traceback, and the others go on. ``--quick`` leaves out the larger of the two
encoders. Times are medians of CUDA events, milliseconds.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import MagicMock

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch's own products are deterministic with it
import torch
from torch import Tensor

DEVICE = "cuda"
DEADLINE_SECONDS = 160
B, D, K = 4096, 768, 32
started = time.monotonic()
report: dict[str, Any] = {"checks": {}, "milliseconds": {}, "errors": {}, "seconds": {}}


def attempt(name: str, run: Callable[[], Any], into: dict[str, Any]) -> Any:
    """Put what ``run`` returns into the report, or its traceback."""
    began = time.monotonic()
    if began - started > DEADLINE_SECONDS:
        report["errors"][name] = "left out: the time is up"
        return None
    try:
        into[name] = run()
        torch.cuda.synchronize()
        return into[name]
    except Exception:  # noqa: BLE001 - one failing kernel must not hide the others
        report["errors"][name] = traceback.format_exc()[-3000:]
        try:
            torch.cuda.synchronize()
        except Exception:  # noqa: BLE001 - the context is gone: say so and stop
            report["errors"]["device lost in"] = name
            print(json.dumps(report, indent=1))
            sys.exit(1)
        return None
    finally:
        report["seconds"][name] = round(time.monotonic() - began, 2)
        print(f"{time.monotonic() - started:7.1f} s  {name}", file=sys.stderr, flush=True)


def milliseconds(run: Callable[[], Any], repeat: int = 15) -> float:
    for _ in range(2):
        run()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    for first, last in events:
        first.record()
        run()
        last.record()
    torch.cuda.synchronize()
    return round(median(first.elapsed_time(last) for first, last in events), 4)


def largest(scores: Tensor, count: int) -> Tensor:
    order = torch.sort(scores, descending=True, stable=True).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def same_pairs(pairs: Any, mask: Tensor, pre: Tensor) -> dict[str, bool]:
    rows, latent = mask.nonzero(as_tuple=True)
    same_places = torch.equal(pairs.latent, latent) and torch.equal(pairs.rows(), rows)
    return {"places": same_places, "values": same_places and torch.equal(pairs.value, pre[mask])}


def close(got: Tensor, want: Tensor) -> dict[str, Any]:
    scale = want.double().abs().max().clamp_min(1e-30)
    return {
        "equal": torch.equal(got, want.to(got.dtype)),
        "relative": float((got.double() - want.double()).abs().max() / scale),
    }


class Case:
    """Rows, an encoder and codes on the device; with ``whole`` numbers every sum is exact in any order."""

    def __init__(self, rows: int, latents: int, width: int, k: int, *, whole: bool) -> None:
        generator = torch.Generator(DEVICE).manual_seed(0)

        def make(*size: int) -> Tensor:
            if whole:
                return torch.randint(-4, 5, size, generator=generator, device=DEVICE).float()
            return torch.randn(*size, generator=generator, device=DEVICE)

        self.x, self.W, self.W_dec, self.b = (
            make(rows, width),
            make(latents, width),
            make(latents, width),
            make(latents),
        )
        self.x[rows // 2] = 0  # ties all over
        self.W[7 % latents] = 3 * self.x[0]
        self.k, self.latents, self.width = k, latents, width


def check(case: Case, label: str) -> None:
    """Every operation against torch, in float64 where sums are not exact."""
    from saecache.train.backends.plain import random_numbers as plain
    from saecache.train.backends.plain.adam import adam_step as _adam_torch
    from saecache.train.backends.protocol import AdamSettings
    from saecache.train.backends.triton import (
        above,
        adam,
        decode,
        exact,
        gradients,
        largest_of_batch,
        random_numbers,
        rounding,
        sums,
        transpose,
    )
    from saecache.train.backends.triton import (
        largest as per,
    )
    from saecache.train.pairs import Pairs

    x, W, W_dec, b, k, F = case.x, case.W, case.W_dec, case.b, case.k, case.latents
    rows = len(x)
    out: dict[str, Any] = {}
    report["checks"][label] = out
    pre64 = x.double() @ W.double().T + b.double()
    pre = exact.exact_matrix(x, W, b)

    def pre_activations() -> dict[str, Any]:
        dense = Pairs.from_dense((torch.rand(rows, F, device=DEVICE) < 0.05).float())
        at = exact.exact(dense, x, W, b)
        r = rows // 3
        alone = exact.exact_matrix(x[r : r + 1].clone(), W[5:9].clone(), b[5:9].clone())
        return close(pre, pre64) | {
            "pair is matrix": torch.equal(at, pre[dense.rows(), dense.latent]),
            "sddmm + b": torch.equal(exact.sddmm(dense, x, W) + b[dense.latent], at),
            "alone": torch.equal(alone[0], pre[r, 5:9]),
        }

    attempt("exact", pre_activations, out)
    per_row = torch.stack([largest(row, k) for row in pre])
    attempt("largest_per_row", lambda: same_pairs(per.largest_per_row(x, W, b, k), per_row, pre), out)
    attempt(
        "largest_of_batch",
        lambda: same_pairs(
            largest_of_batch.largest_of_batch(x, W, b, k * rows),
            largest(pre.flatten(), k * rows).view_as(pre),
            pre,
        ),
        out,
    )
    counts = torch.randint(0, 3, (F,), device=DEVICE).clamp_max(rows)
    counts[3], counts[4] = rows, 0
    wanted = torch.stack(
        [largest(column, int(n)) for column, n in zip(pre.T, counts.tolist(), strict=True)], 1
    )
    attempt(
        "largest_per_latent", lambda: same_pairs(per.largest_per_latent(x, W, b, counts), wanted, pre), out
    )
    bar = pre.flatten().sort().values[int(0.99 * pre.numel())].clone()
    attempt("above", lambda: same_pairs(above.above(x, W, b, bar), pre > bar, pre), out)
    attempt(
        "above, many", lambda: same_pairs(above.above(x, W, b, bar * 0, strict=False), pre >= 0, pre), out
    )
    each = bar + torch.rand(F, device=DEVICE).round()
    attempt("above, each its own", lambda: same_pairs(above.above(x, W, b, each), pre > each, pre), out)

    chosen = per_row.clone()
    chosen[:, 5] = True  # a latent that all rows choose
    chosen[1:2] = False  # a row without pairs
    codes = Pairs.from_dense(torch.where(chosen, torch.where(pre == 0, 1.0, pre), 0.0))
    dense = codes.to_dense().double()
    error64 = dense @ W_dec.double() - x.double()
    attempt(
        "decode",
        lambda: close(decode.decode(codes, W_dec, x[0]), dense @ W_dec.double() + x[0].double()),
        out,
    )

    def reconstruct() -> dict[str, Any]:
        error, dots, squared = decode.reconstruct(codes, W_dec, x)
        want = (error64[codes.rows()] * W_dec.double()[codes.latent]).sum(1)
        return {
            "error": close(error, error64), "dots": close(dots, want),
            "squared": close(squared, error64.square().sum(1)),
            "dots are sddmm": torch.equal(dots, exact.sddmm(codes, error, W_dec)),
        }  # fmt: skip

    attempt("reconstruct", reconstruct, out)

    def transposed() -> dict[str, bool]:
        order = transpose.by_latent(codes)
        pair = torch.argsort(codes.latent, stable=True)
        ptr = torch.searchsorted(codes.latent[pair], torch.arange(F + 1, device=DEVICE))
        return {
            "pair": torch.equal(order.pair, pair), "row": torch.equal(order.row, codes.rows()[pair]),
            "ptr": torch.equal(order.latent_ptr, ptr),
        }  # fmt: skip

    attempt("by_latent", transposed, out)
    g = torch.sign(codes.value) * 2 if float(pre[0, 0]).is_integer() else codes.value * 0.3
    by = torch.zeros_like(dense)
    by[codes.rows(), codes.latent] = g.double()

    def gradient() -> dict[str, Any]:
        e = error64.float()
        enc, dec, bias = torch.ones_like(W), torch.ones_like(W), torch.ones_like(b)
        gradients.weight_gradients(codes, g, codes.value, x, e, enc, dec, bias)
        again = [torch.ones_like(t) for t in (W, W, b)]
        gradients.weight_gradients(codes, g, codes.value, x, e, *again)
        alone = torch.ones_like(W)
        gradients.accumulate_by_latent(codes, g, x, alone)
        return {
            "enc": close(enc, by.T @ x.double() + 1), "dec": close(dec, dense.T @ e.double() + 1),
            "bias": close(bias, by.sum(0) + 1), "accumulate": torch.equal(alone, enc),
            "again": all(torch.equal(p, q) for p, q in zip((enc, dec, bias), again, strict=True)),
        }  # fmt: skip

    attempt("weight_gradients", gradient, out)
    attempt(
        "sum_per_latent",
        lambda: (
            close(sums.sum_per_latent(codes, g), by.sum(0))
            | {"count": torch.equal(sums.count_per_latent(codes), chosen.sum(0))}
        ),
        out,
    )

    def optimizer() -> dict[str, Any]:
        found: dict[str, Any] = {}
        for unit in (False, True):
            p = torch.nn.functional.normalize(torch.randn_like(W), dim=1)
            gradient, m, v = torch.randn_like(W), torch.rand_like(W) * 0.1, torch.rand_like(W) * 0.1
            settings = AdamSettings(
                learning_rate=1e-2,
                betas=(0.9, 0.999),
                eps=1e-8,
                weight_decay=0.01,
                decoupled=True,
                gradient_scale=0.5,
            )
            want, got = [t.double() for t in (p, m, v)], [t.clone() for t in (p, m, v)]
            _adam_torch(want[0], gradient.double(), want[1], want[2], 3, settings, unit_rows=unit)
            step = torch.full((), 3, dtype=torch.int64, device=DEVICE)
            refresh = rounding.round_latents(p) if unit else None
            adam.adam_step(got[0], gradient, got[1], got[2], step, settings, unit_rows=unit, refresh=refresh)
            found[f"unit {unit}"] = [close(p, q)["relative"] for p, q in zip(got, want, strict=True)]
            if refresh is not None:
                fresh = rounding.round_latents(got[0])
                found["refresh"] = torch.equal(fresh.rounded, refresh.rounded) and torch.equal(
                    fresh.rounded, got[0].bfloat16()
                )
                found["factor"] = close(refresh.factor, fresh.factor)["relative"]
            g64, p64 = gradient.double(), p.double()
            left = g64 - (g64 * p64).sum(1, keepdim=True) / p64.square().sum(1, keepdim=True) * p64
            norm = adam.gradient_norm(gradient, p if unit else None)
            found[f"norm {unit}"] = close(norm, (left if unit else g64).norm())["relative"]
        return found

    attempt("adam_step", optimizer, out)

    def random() -> dict[str, bool]:
        numbers = random_numbers.random_uniform(2**40 + 7, 3, 5, 9, F, DEVICE)
        expected = plain.random_uniform(2**40 + 7, 3, 5, 9, F, "cpu")
        return {"as on the CPU": torch.equal(numbers.cpu(), expected)}

    attempt("random_uniform", random, out)


def measure(F: int) -> None:
    from saecache.train.backends.protocol import AdamSettings
    from saecache.train.backends.triton import (
        above,
        adam,
        candidates,
        decode,
        exact,
        gradients,
        largest_of_batch,
        random_numbers,
        rounding,
        screen,
        sums,
        transpose,
    )
    from saecache.train.backends.triton import (
        largest as per,
    )
    from saecache.train.pairs import Pairs

    case = Case(B, F, D, K, whole=False)
    x, b = case.x, 0.1 * case.b
    W = torch.nn.functional.normalize(case.W, dim=1)
    W_dec = W.clone()
    times: dict[str, Any] = {}
    report["milliseconds"][f"F = {F}"] = times

    def timed(name: str, run: Callable[[], Any], repeat: int = 15) -> None:
        attempt(f"{name}, F = {F}", lambda: times.update({name: milliseconds(run, repeat)}), {})

    x16, W16 = x.bfloat16(), W.bfloat16()
    product = torch.empty(B, F, dtype=torch.bfloat16, device=DEVICE)
    timed("bare bf16 product", lambda: torch.matmul(x16, W16.T, out=product))
    rx, rW = rounding.round_batch(x), rounding.round_latents(W)
    timed("round_batch", lambda: rounding.round_batch(x))
    timed("round_latents", lambda: rounding.round_latents(W))
    timed("screen", lambda: screen.screen(rx, rW, b))
    for BM, BN, BK, warps, stages in (
        (128, 256, 64, 8, 4),
        (128, 128, 64, 4, 4),
        (128, 128, 64, 8, 4),
        (256, 128, 64, 8, 3),
    ):
        kept = screen.product_options
        screen.product_options = lambda _, o=(BM, BN, BK, warps, stages): dict(
            zip(("BM", "BN", "BK", "num_warps", "num_stages"), o, strict=True)
        )
        if F < 30000:
            timed(
                f"screen {BM} x {BN} x {BK}, {warps} warps, {stages} stages", lambda: screen.screen(rx, rW, b)
            )
        screen.product_options = kept
    found = screen.screen(rx, rW, b)
    timed("least_of_rows", lambda: candidates.least_of_rows(found, K))
    least = candidates.least_of_rows(found, K)
    room = candidates.room_for(B, F, B * K)
    timed("candidates with exact", lambda: candidates.candidates(found, least, "row", room, x, W))
    some = candidates.candidates(found, least, "row", room, x, W)
    times["candidates of a row"] = round(int(some.count) / B, 1)
    times["room of a row"] = room / B
    timed(
        "exact of candidates",
        lambda: exact.exact_at(some.row, some.column, x, W, b, some.value, count=some.count),
    )
    timed("largest_per_row, queued", lambda: per.queue_largest_per_row(x, W, b, K, rounded_W=rW))
    timed("largest_per_row", lambda: per.largest_per_row(x, W, b, K, rounded_W=rW))
    timed("largest_of_batch", lambda: largest_of_batch.largest_of_batch(x, W, b, B * K, rounded_W=rW))
    counts = torch.full((F,), -(-B * K // F), dtype=torch.int64, device=DEVICE)
    total = int(counts.sum())
    timed("largest_per_latent", lambda: per.largest_per_latent(x, W, b, counts, total=total, rounded_W=rW))
    codes = per.largest_per_row(x, W, b, K, rounded_W=rW)
    bar = codes.value.median()
    timed("above", lambda: above.above(x, W, b, bar, rounded_W=rW))
    timed("above, half of all", lambda: above.above(x, W, b, bar * 0, rounded_W=rW), 3)
    timed("exact_matrix", lambda: exact.exact_matrix(x, W, b), 3)

    def fresh() -> Any:
        return Pairs(row_ptr=codes.row_ptr, latent=codes.latent, value=codes.value, num_latents=F)

    timed("by_latent", lambda: transpose.by_latent(fresh()))
    timed("sddmm", lambda: exact.sddmm(codes, x, W))
    timed("decode", lambda: decode.decode(codes, W_dec))
    timed("reconstruct", lambda: decode.reconstruct(codes, W_dec, x))
    error, dots, _ = decode.reconstruct(codes, W_dec, x)
    enc, dec, bias = torch.zeros_like(W), torch.zeros_like(W), torch.zeros_like(b)
    arguments = (codes, dots, codes.value, x, error, enc, dec, bias)
    timed("weight_gradients, add", lambda: gradients.weight_gradients(*arguments))
    timed("weight_gradients, write", lambda: gradients.weight_gradients(*arguments, add=False))
    timed("accumulate_by_latent", lambda: gradients.accumulate_by_latent(codes, dots, x, enc))
    timed("sum_per_latent", lambda: sums.sum_per_latent(codes, dots))
    settings = AdamSettings(learning_rate=1e-4, betas=(0.9, 0.999), eps=1e-8)
    m, v, p, q = torch.zeros_like(W), torch.zeros_like(W), W.clone(), W.clone()
    step = torch.ones((), dtype=torch.int64, device=DEVICE)
    numbers = adam.adam_numbers(settings, step, x.device)
    timed("adam_numbers", lambda: adam.adam_numbers(settings, step, x.device))
    timed("adam_step", lambda: adam.adam_step(p, enc, m, v, 1, settings, numbers=numbers))
    timed(
        "adam_step, refresh", lambda: adam.adam_step(p, enc, m, v, 1, settings, numbers=numbers, refresh=rW)
    )
    timed(
        "adam_step, unit rows",
        lambda: adam.adam_step(q, dec, m, v, 1, settings, numbers=numbers, unit_rows=True),
    )
    timed("gradient_norm", lambda: adam.gradient_norm(enc))
    timed("gradient_norm, unit rows", lambda: adam.gradient_norm(dec, q))
    timed("random_uniform", lambda: random_numbers.random_uniform(1, 2, 0, B, F, DEVICE))

    def whole_step() -> None:
        codes = per.queue_largest_per_row(x, p, b, K, rounded_W=rW).pairs
        e, d, _ = decode.reconstruct(codes, q, x)
        gradients.weight_gradients(codes, d, codes.value, x, e, enc, dec, bias, add=False)
        norm = (adam.gradient_norm(enc).square() + adam.gradient_norm(dec, q).square()).sqrt()
        n = adam.adam_numbers(settings, step, x.device, gradient_scale=adam.clip_factor(norm, 1.0))
        adam.adam_step(p, enc, m, v, 1, settings, numbers=n, refresh=rW)
        adam.adam_step(q, dec, m, v, 1, settings, numbers=n, unit_rows=True)

    timed("kernels of a TopK step", whole_step)

    def as_graph() -> Any:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            whole_step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            whole_step()
        return times.update({"kernels of a TopK step, CUDA graph": milliseconds(graph.replay)})

    attempt(f"graph, F = {F}", as_graph, {})
    times["peak memory, GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)


def make_importable() -> None:
    """``saecache`` is the root of this repository, whatever its folder is called; without numba its compiled
    loops for the CPU are left out, which nothing here calls.
    """
    root = Path(__file__).resolve().parents[4]
    spec = spec_from_file_location("saecache", root / "__init__.py", submodule_search_locations=[str(root)])
    assert spec is not None and spec.loader is not None
    sys.modules["saecache"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["saecache"])
    try:
        import numba  # noqa: F401
    except Exception as error:  # noqa: BLE001 - whatever is wrong with it
        report["numba"] = f"left out: {error}"
        for name in ("numba", "numba.extending", "numba.core", "numba.typed", "llvmlite"):
            sys.modules[name] = MagicMock()


def main() -> None:
    import triton

    make_importable()

    torch.use_deterministic_algorithms(True)
    report["torch"], report["triton"] = torch.__version__, triton.__version__
    report["device"] = torch.cuda.get_device_name()
    from saecache.train.backends.triton.screen import keeps_bounds

    attempt(
        "keeps_bounds",
        lambda: {w: keeps_bounds(torch.device(DEVICE, 0), w) for w in (100, D)},
        report["checks"],
    )
    for whole in (True, False):
        for rows, latents, width, k in ((97, 1003, 100, 5), (64, 4096, D, 16), (1, 70, 24, 1)):
            label = f"{rows} x {latents} x {width}, {'whole numbers' if whole else 'random'}"
            attempt(label, lambda: check(Case(rows, latents, width, k, whole=whole), label), {})  # noqa: B023
    torch.utils.deterministic.fill_uninitialized_memory = False  # it takes time
    for F in (24576,) if "--quick" in sys.argv else (24576, 65536):
        attempt(f"measure {F}", lambda: measure(F), {})  # noqa: B023
        torch.cuda.empty_cache()
    report["seconds in all"] = round(time.monotonic() - started, 1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    with torch.no_grad():
        main()
