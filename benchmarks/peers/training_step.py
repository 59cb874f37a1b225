"""One trainer of another package, stepped on request: the other end of ``benchmarks/step.py``.

Runs in an environment of its own, without saecache. Reads one JSON object a line on stdin, answers with one
on stdout: first the settings (-> {"ready": true} or {"missing": why}), then for each {"step": i} ->
    {"seconds": s, "cpu_seconds": c}.
"""

import json
import os
import sys
import time
from types import SimpleNamespace

import torch

FOREVER = 10**9  # steps or rows without firing: dead by every package's count


def rows(settings):
    """The same unit rows for everybody."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, settings.rows, settings.width, generator=generator)
    return x / x.norm(dim=2, keepdim=True)


def dead_latents(settings):
    return torch.arange(settings.latents) < settings.dead * settings.latents


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
        config_class(d_in=settings.width, d_sae=settings.latents, k=settings.k, aux_loss_coefficient=1 / 32)
    )
    config = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=settings.rows,
        lr=1e-4,
        lr_end=1e-5,
        device="cpu",
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    dead = dead_latents(settings)

    def step(x):
        trainer.step(x)
        trainer.n_training_steps += 1

    def prepare():
        trainer.n_forward_passes_since_fired[dead] = FOREVER

    return step, prepare


def dictionary_learning(settings):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer_class = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer}[settings.variant]
    trainer = trainer_class(
        steps=10**6, activation_dim=settings.width, dict_size=settings.latents, k=settings.k, layer=0,
        lm_name="none", device="cpu", seed=0,
    )  # fmt: skip
    dead, count = dead_latents(settings), iter(range(10**9))

    def prepare():
        trainer.num_tokens_since_fired[dead] = FOREVER

    return lambda x: trainer.update(next(count), x), prepare


def sparsify(settings):
    from sparsify import SparseCoder, SparseCoderConfig

    if settings.variant != "topk":
        raise ImportError(f"it has no {settings.variant}")
    torch.set_float32_matmul_precision("high")  # as its trainer does
    coder = SparseCoder(settings.width, SparseCoderConfig(num_latents=settings.latents, k=settings.k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-4)
    since_fired = torch.zeros(settings.latents, dtype=torch.long)
    dead = dead_latents(settings)

    def step(x):  # what its trainer does with one batch of activations
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=since_fired > 10_000_000)
        (out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        since_fired.add_(len(x))
        since_fired[out.latent_indices.flatten()] = 0

    def prepare():
        since_fired[dead] = FOREVER

    return step, prepare


PEERS = {"SAELens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages print; stdout is for answers only

    def answer(**values):
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    settings = SimpleNamespace(**json.loads(sys.stdin.readline()))
    torch.set_num_threads(settings.threads)
    try:
        step, prepare = PEERS[settings.peer](settings)
    except ImportError as error:
        answer(missing=str(error))
        return
    x = rows(settings)
    answer(ready=True)
    for line in sys.stdin:
        i = json.loads(line)["step"]
        with torch.no_grad():
            prepare()
        started, cpu_started = time.perf_counter(), time.process_time()
        step(x[i % len(x)])
        answer(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - cpu_started)


if __name__ == "__main__":
    main()
