"""The number type of the forward."""

from time import perf_counter
from typing import Any

import torch

from ...common.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Below this width the forward is not bound by its matmuls, and bfloat16 on a CPU only costs precision.
_MIN_WIDTH_FOR_CPU_BF16 = 512
_WORTHWHILE_SPEEDUP = 1.3


def resolve_dtype(dtype: str, device: torch.device, width: int) -> str:
    """'auto' is bfloat16 where the hardware has it, else float16 on GPUs and float32 on CPUs.

    On a CPU bfloat16 is taken only when its instructions are there, the model is wide enough to gain, and a
    matmul of its width is measurably faster.

    Raises:
        UsageError: there is no such number type.
    """
    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise UsageError(f"number type {dtype!r:.80} of a model: expected auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device.type == "mps":
        return "float16"
    if (
        width >= _MIN_WIDTH_FOR_CPU_BF16
        and _cpu_has_bf16()
        and cpu_bf16_speedup(width) >= _WORTHWHILE_SPEEDUP
    ):
        return "bfloat16"
    return "float32"


def _cpu_has_bf16() -> bool:
    return cpu_has("_is_amx_tile_supported") or cpu_has("_is_avx512_bf16_supported")


def cpu_has(question: str) -> bool:
    """The answer of ``torch.cpu`` to a question about instructions, which no public function answers yet."""
    ask: Any = getattr(torch.cpu, question, None)
    return ask is not None and bool(ask())


def cpu_bf16_speedup(width: int, rows: int = 256) -> float:
    """How many times faster the MLP matmul of a model of this width is in bfloat16; the best of interleaved
    tries.
    """
    times: dict[torch.dtype, float] = {}
    x = torch.randn(rows, width)
    weight = torch.randn(4 * width, width)
    for _ in range(6):
        for dtype in (torch.float32, torch.bfloat16):
            a, b = x.to(dtype), weight.to(dtype)
            started = perf_counter()
            torch.nn.functional.linear(a, b)
            times[dtype] = min(times.get(dtype, float("inf")), perf_counter() - started)
    return times[torch.float32] / times[torch.bfloat16]
