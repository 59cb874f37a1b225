"""Trainers of other packages, one step at a time: the set-up that ``training_step.py`` and ``train_one.py``
share. Runs in an environment of its own, without saecache.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

FOREVER = 10**9  # steps or rows without firing: dead by every package's count


class Trainer(NamedTuple):
    """A package at work.

    Attributes:
        step: one step of training on rows [B, D].
        reconstruct: of rows, by the rule of training.
        W_enc: [F, D], its encoder, a view of what it trains.
        declare_dead: takes bool [F], latents to count as dead from now on.
        learning_rate: what it trains with; None in ``settings`` is its own default.
    """

    step: Callable[[torch.Tensor], object]
    reconstruct: Callable[[torch.Tensor], torch.Tensor]
    W_enc: torch.Tensor
    declare_dead: Callable[[torch.Tensor], object]
    learning_rate: float


def saelens(settings) -> Trainer:
    from sae_lens.config import LanguageModelSAERunnerConfig, SAETrainerConfig
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
    ).to(settings.device)  # fmt: skip
    learning_rate = settings.learning_rate or LanguageModelSAERunnerConfig.lr
    config = SAETrainerConfig(
        total_training_samples=settings.steps * settings.rows,
        train_batch_size_samples=settings.rows,
        lr=learning_rate,
        lr_end=learning_rate,
        lr_warm_up_steps=settings.warmup_steps,
        device=settings.device,
    )
    trainer = SAETrainer(config, sae, data_provider=iter(()))
    scale = (
        settings.width**0.5 if settings.scaled else 1.0
    )  # its "expected_average_only_in", of rows of norm 1

    def step(x):
        trainer.step(x * scale)
        trainer.n_training_steps += 1

    def declare_dead(dead):
        trainer.n_forward_passes_since_fired[dead] = FOREVER

    return Trainer(
        step,
        lambda x: sae.decode(sae.encode(x * scale)) / scale,
        sae.W_enc.data.T,
        declare_dead,
        learning_rate,
    )


def dictionary_learning(settings) -> Trainer:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer_class = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer}[settings.variant]
    trainer = trainer_class(
        steps=settings.steps, activation_dim=settings.width, dict_size=settings.latents, k=settings.k,
        layer=0, lm_name="none", device=settings.device, seed=settings.seed, lr=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
    )  # fmt: skip
    ae, steps = trainer.ae, iter(range(FOREVER))

    def declare_dead(dead):
        trainer.num_tokens_since_fired[dead] = FOREVER

    return Trainer(
        lambda x: trainer.update(next(steps), x),
        lambda x: ae.decode(ae.encode(x, use_threshold=False)),
        ae.encoder.weight.data,
        declare_dead,
        trainer.lr,
    )


def sparsify(settings) -> Trainer:
    from sparsify import SparseCoder, SparseCoderConfig

    if settings.variant != "topk":
        raise ImportError(f"it has no {settings.variant}")
    torch.set_float32_matmul_precision("high")  # as its trainer does
    config = SparseCoderConfig(num_latents=settings.latents, k=settings.k)
    coder = SparseCoder(settings.width, config).to(settings.device)
    coder.set_decoder_norm_to_unit_norm()
    optimizer, schedule, learning_rate = sparsify_optimizer(settings, coder)
    since_fired = torch.zeros(settings.latents, dtype=torch.long, device=settings.device)
    steps = iter(range(FOREVER))

    def step(x):  # what its trainer does with one batch of activations
        if next(steps) == 0:
            coder.b_dec.data = x.mean(0)
        coder.set_decoder_norm_to_unit_norm()
        out = coder(x, dead_mask=since_fired > 10_000_000)
        (out.fvu + out.auxk_loss / 32 + out.multi_topk_fvu / 8).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule()
        since_fired.add_(len(x))
        since_fired[out.latent_indices.flatten()] = 0

    def declare_dead(dead):
        since_fired[dead] = FOREVER

    def reconstruct(x):
        if settings.learning_rate is None:
            optimizer.eval()  # of schedule-free training: the mean of the weights
        return coder(x).sae_out

    return Trainer(step, reconstruct, coder.encoder.weight.data, declare_dead, learning_rate)


def sparsify_optimizer(settings, coder):
    """The optimizer, what follows each of its steps, and the learning rate: Adam with the rate of
    ``settings`` after a warmup, or sparsify's default, whose rate its trainer computes so.
    """
    if settings.learning_rate is None:
        from schedulefree import ScheduleFreeWrapper
        from sparsify.sign_sgd import SignSGD

        rate = 5e-3 / (settings.latents / 2**14) ** 0.5
        optimizer = ScheduleFreeWrapper(SignSGD(coder.parameters(), lr=rate), momentum=0.95)
        optimizer.train()
        return optimizer, lambda: None, rate
    optimizer = torch.optim.Adam(coder.parameters(), lr=settings.learning_rate)
    warmup = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / max(1, settings.warmup_steps))
    )
    return optimizer, warmup.step, settings.learning_rate


def saelens_fvu(x, reconstruction, batch_rows):
    """FVU [rows, width] of its evals, over all rows."""
    from sae_lens.evals import ExplainedVarianceCalculator

    calculator = ExplainedVarianceCalculator()
    for one, other in zip(x.split(batch_rows), reconstruction.split(batch_rows), strict=True):
        calculator.add_batch(sae_output=other, hidden_acts=one)
    return 1 - calculator.compute()


def dictionary_learning_fvu(x, reconstruction, batch_rows):
    """FVU of its evaluation: the mean over batches, of which each has its own variance."""
    from dictionary_learning.evaluation import evaluate

    batches = x.split(batch_rows)
    given = iter(reconstruction.split(batch_rows))

    def dictionary(x, output_features):
        return next(given), x.new_zeros(len(x), 1)

    dictionary.dict_size = 1
    found = evaluate(dictionary, iter(batches), n_batches=len(batches))
    return 1 - found["frac_variance_explained"]


def sparsify_fvu(x, reconstruction, batch_rows):
    """FVU of its coder's output, over all rows."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=8, k=1))
    coder.decode = lambda values, indices: reconstruction
    with torch.no_grad():
        return float(coder(x).fvu)


PACKAGES = {"SAELens": saelens, "dictionary_learning": dictionary_learning, "sparsify": sparsify}
EVALUATIONS = {  # package -> FVU of reconstructions [rows, width] by the package's own code
    "SAELens": saelens_fvu,
    "dictionary_learning": dictionary_learning_fvu,
    "sparsify": sparsify_fvu,
}


def answering() -> Callable[..., None]:
    """A function that prints JSON on stdout; all other printing goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def answer(**values):
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    return answer
