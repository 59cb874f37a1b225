"""SAEs trained by another package on given rows: the other end of ``benchmarks/fvu.py``.

Runs in an environment of its own, without saecache. Takes one JSON object as its argument, prints one:
{"fvu": for each seed, of held-out rows, by the rule of training, "encoder_norm": at the start} or
{"missing": why}.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import torch
from packages import PACKAGES, answering


def train(settings, rows, heldout):
    torch.manual_seed(settings.seed)
    trainer = PACKAGES[settings.peer](settings)
    norms = trainer.W_enc.norm(dim=1, keepdim=True)
    if settings.encoder_norm is not None:
        trainer.W_enc.mul_(settings.encoder_norm / norms)
    for x in rows.split(settings.rows):
        trainer.step(x)
    with torch.no_grad():
        errors = [(trainer.reconstruct(x) - x).double().square().sum() for x in heldout.split(settings.rows)]
    fvu = sum(errors) / (heldout - heldout.mean(0)).double().square().sum()
    return float(fvu), settings.encoder_norm or float(norms.mean())


def main():
    answer = answering()
    settings = json.loads(sys.argv[1])
    rows, heldout = (torch.from_numpy(np.load(settings[name])) for name in ("rows_file", "heldout_file"))
    try:
        results = [
            train(SimpleNamespace(**settings, seed=seed, device="cpu"), rows, heldout)
            for seed in range(settings["seeds"])
        ]
    except ImportError as error:
        answer(missing=str(error))
        return
    answer(fvu=[fvu for fvu, _ in results], encoder_norm=results[0][1])


if __name__ == "__main__":
    main()
