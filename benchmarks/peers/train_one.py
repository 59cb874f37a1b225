"""SAEs trained by another package on given rows: the other end of ``benchmarks/peers/fvu.py``.

Runs in an environment of its own, without saecache. Takes one JSON object as its argument, prints one:
{"fvu": for each seed, of held-out rows, by the rule of training} or {"missing": why}.
"""

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import torch


def saelens(settings):
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    kinds = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
        "batch_topk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    }
    sae_class, config_class = kinds[settings.variant]
    sae = sae_class(
        config_class(
            d_in=settings.width, d_sae=settings.latents, k=settings.k, aux_loss_coefficient=1 / 32,
            decoder_init_norm=1.0,
        )
    )  # fmt: skip
    config = SAETrainerConfig(
        total_training_samples=settings.steps * settings.batch_rows,
        train_batch_size_samples=settings.batch_rows,
        lr=settings.learning_rate,
        lr_end=settings.learning_rate,
        lr_warm_up_steps=settings.warmup_steps,
        device="cpu",
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))

    def step(x):
        trainer.step(x)
        trainer.n_training_steps += 1

    return step, lambda x: sae.decode(sae.encode(x))


def dictionary_learning(settings):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer_class = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer}[settings.variant]
    trainer = trainer_class(
        steps=settings.steps, activation_dim=settings.width, dict_size=settings.latents, k=settings.k,
        layer=0, lm_name="none", device="cpu", seed=settings.seed, lr=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
    )  # fmt: skip
    steps = iter(range(10**9))
    ae = trainer.ae
    return (
        lambda x: trainer.update(next(steps), x),
        lambda x: ae.decode(ae.encode(x, use_threshold=False)),
    )


def sparsify(settings):
    from sparsify import SparseCoder, SparseCoderConfig

    if settings.variant != "topk":
        raise ImportError(f"it has no {settings.variant}")
    coder = SparseCoder(settings.width, SparseCoderConfig(num_latents=settings.latents, k=settings.k))
    coder.set_decoder_norm_to_unit_norm()
    coder.encoder.weight.data = coder.W_dec.data.clone()  # as the others start; its own start is shorter
    optimizer = torch.optim.Adam(coder.parameters(), lr=settings.learning_rate)
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / settings.warmup_steps)
    )
    steps = iter(range(10**9))

    def step(x):  # what its trainer does with one batch of activations
        if next(steps) == 0:
            coder.b_dec.data = x.mean(0)
        coder.set_decoder_norm_to_unit_norm()
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warmup.step()

    return step, lambda x: coder(x).sae_out


PEERS = {"SAELens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}


def trained_fvu(settings, rows, heldout):
    torch.manual_seed(settings.seed)
    step, reconstruct = PEERS[settings.peer](settings)
    for x in rows.split(settings.batch_rows):
        step(x)
    with torch.no_grad():
        errors = [(reconstruct(x) - x).double().square().sum() for x in heldout.split(settings.batch_rows)]
    return float(sum(errors) / (heldout - heldout.mean(0)).double().square().sum())


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages print; stdout is for the answer only
    settings = json.loads(sys.argv[1])
    rows, heldout = (torch.from_numpy(np.load(settings[name])) for name in ("rows", "heldout"))
    seeds = range(settings["seeds"])
    try:
        answer = {"fvu": [trained_fvu(SimpleNamespace(**settings, seed=s), rows, heldout) for s in seeds]}
    except ImportError as error:
        answer = {"missing": str(error)}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
