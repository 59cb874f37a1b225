"""One trainer of another package, stepped on request: the other end of ``benchmarks/step.py``.

Runs in an environment of its own, without saecache. Reads one JSON object a line on stdin, answers with one
on stdout: first the settings (-> {"ready": true} or {"missing": why}), then for each {"step": i} ->
    {"seconds": s, "cpu_seconds": c}.
"""

import json
import sys
import time
from types import SimpleNamespace

import torch
from packages import FOREVER, PACKAGES, answering

DEFAULTS = {
    "steps": FOREVER // 10**5, "learning_rate": 1e-4, "warmup_steps": 0, "seed": 0, "device": "cpu",
    "scaled": False,
}  # fmt: skip


def rows(settings):
    """The same unit rows for everybody."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, settings.rows, settings.width, generator=generator)
    return (x / x.norm(dim=2, keepdim=True)).to(settings.device)


def main():
    answer = answering()
    settings = SimpleNamespace(**(DEFAULTS | json.loads(sys.stdin.readline())))
    torch.set_num_threads(settings.threads)
    try:
        trainer = PACKAGES[settings.peer](settings)
    except ImportError as error:
        answer(missing=str(error))
        return
    x = rows(settings)
    dead = torch.arange(settings.latents, device=settings.device) < settings.dead * settings.latents
    wait = torch.cuda.synchronize if settings.device.startswith("cuda") else lambda: None
    answer(ready=True)
    for line in sys.stdin:
        i = json.loads(line)["step"]
        with torch.no_grad():
            trainer.declare_dead(dead)
        wait()
        started, cpu_started = time.perf_counter(), time.process_time()
        trainer.step(x[i % len(x)])
        wait()
        answer(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - cpu_started)


if __name__ == "__main__":
    main()
