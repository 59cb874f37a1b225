"""SAEs trained by another package on given rows: the other end of ``benchmarks/fvu.py``.

Runs in an environment of its own, without saecache. Takes one JSON object as its argument, and prints one:
{"fvu": for each seed, of held-out rows, by the rule of training, "by_their_evaluation": the same by the
package's own code, "ours_by_their_evaluation": for each file of our reconstructions, "encoder_norm": at the
start, "learning_rate": its own where none was given} or {"missing": why}.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import torch
from packages import EVALUATIONS, PACKAGES, answering


def train(settings, rows, heldout):
    """Train one SAE, and return its reconstruction of the held-out rows, its encoder's norm at first, and its
    learning rate.
    """
    torch.manual_seed(settings.seed)
    trainer = PACKAGES[settings.peer](settings)
    norms = trainer.W_enc.norm(dim=1, keepdim=True)
    if settings.encoder_norm is not None:
        trainer.W_enc.mul_(settings.encoder_norm / norms)
    for x in rows.split(settings.rows):
        trainer.step(x)
    with torch.no_grad():
        found = torch.cat([trainer.reconstruct(x) for x in heldout.split(settings.rows)])
    return found, settings.encoder_norm or float(norms.mean()), trainer.learning_rate


def main():
    answer = answering()
    settings = json.loads(sys.argv[1])
    rows, heldout = (torch.from_numpy(np.load(settings[name])) for name in ("rows_file", "heldout_file"))
    variance = (heldout - heldout.mean(0)).double().square().sum()
    fvu, by_theirs, norm, rate = [], [], None, None
    try:
        evaluation = EVALUATIONS[settings["peer"]]
        for seed in range(settings["seeds"]):
            found, norm, rate = train(SimpleNamespace(**settings, seed=seed, device="cpu"), rows, heldout)
            fvu.append(float((found - heldout).double().square().sum() / variance))
            by_theirs.append(evaluation(heldout, found, settings["rows"]))
        ours = [
            evaluation(heldout, torch.from_numpy(np.load(file)), settings["rows"])
            for file in settings["our_files"]
        ]
    except ImportError as error:
        answer(missing=str(error))
        return
    answer(
        fvu=fvu,
        by_their_evaluation=by_theirs,
        ours_by_their_evaluation=ours,
        encoder_norm=norm,
        learning_rate=rate,
    )


if __name__ == "__main__":
    main()
