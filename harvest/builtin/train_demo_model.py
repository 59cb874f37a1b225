"""Train the demo model: a small GPT-NeoX (Pythia's architecture) on the standard library of Python.

    python -m saecache.harvest.builtin.train_demo_model --out DIR [--state FILE]

Writes a folder for `from_pretrained`: weights (float16 safetensors), tokenizer, model card with every figure.
Takes about 35 core-minutes; needs torch 2.9 or newer (Muon).
Legend: B sequences, T tokens of context, V vocabulary.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import AutoModelForCausalLM, GPTNeoXForCausalLM

from .demo_model import DemoModelSettings, build_model, save_model, train_tokenizer
from .heldout import document_loss, encode_document, total, unigram_log_probability
from .model_card import model_card
from .stdlib_text import is_heldout, stdlib_documents, stdlib_fingerprint

# Most are tables of 256 characters that differ in a few lines: they make up the card's second group.
TABLES_PREFIX = "encodings/"


def training_batches(documents: list[list[int]], settings: DemoModelSettings) -> Iterator[Tensor]:
    """Endless [B, T + 1] batches; each epoch packs the documents in a new order and shuffles the windows."""
    rng = random.Random(settings.seed)
    window = settings.context_tokens + 1
    while True:
        order = rng.sample(documents, len(documents))
        stream = torch.tensor([token for document in order for token in document])
        num_windows = len(stream) // window
        windows = stream[: num_windows * window].view(num_windows, window)
        shuffled = windows[torch.tensor(rng.sample(range(num_windows), num_windows))]
        # The remainder of an epoch is dropped: every step then has the same size.
        for start in range(0, num_windows - settings.sequences_per_step + 1, settings.sequences_per_step):
            yield shuffled[start : start + settings.sequences_per_step]


def learning_rate_share(step: int, settings: DemoModelSettings) -> float:
    """Linear warmup, a constant stretch, linear decay to zero over the last `decay_share` of the steps."""
    decay_steps = max(1, round(settings.decay_share * settings.num_steps))
    return min(1.0, (step + 1) / settings.warmup_steps, (settings.num_steps - step) / decay_steps)


def build_optimizers(model: GPTNeoXForCausalLM, settings: DemoModelSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    matrices = [p for p in model.gpt_neox.layers.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(
        matrices,
        lr=settings.matrix_learning_rate,
        weight_decay=settings.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        others, lr=settings.other_learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return [muon, adamw]


def batch_loss(model: GPTNeoXForCausalLM, tokens: Tensor) -> Tensor:
    """Mean next-token cross-entropy in nats of windows [B, T + 1]."""
    # Measured: 1.4 to 1.6 times the speed of float32 on a CPU with bfloat16 instructions.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits_BTV = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return cross_entropy(logits_BTV.flatten(0, 1).float(), tokens[:, 1:].flatten())


def train_step(
    model: GPTNeoXForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    batch: Tensor,
    step: int,
    settings: DemoModelSettings,
) -> float:
    """One update; returns the batch's loss in nats per token."""
    loss_sum = 0.0
    # Small pieces keep the logits in the processor's cache: faster than one large batch.
    for piece in torch.split(batch, settings.sequences_per_microbatch):
        loss = batch_loss(model, piece) * (len(piece) / len(batch))
        torch.autograd.backward(loss)
        loss_sum += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * learning_rate_share(step, settings)
        optimizer.step()
        optimizer.zero_grad()
    return loss_sum


class DemoTraining:
    """One run: the text, the tokenizer, the model, and how far the training has come."""

    def __init__(self, settings: DemoModelSettings, out: Path) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.out = out
        documents = list(stdlib_documents())
        self.heldout = [(name, text) for name, text in documents if is_heldout(name)]
        train_texts = [text for name, text in documents if not is_heldout(name)]
        self.num_train_bytes = sum(len(text.encode()) for text in train_texts)
        self.tokenizer = train_tokenizer(train_texts, settings.vocab_size)
        self.train_documents = [encode_document(self.tokenizer, text) for text in train_texts]
        self.num_train_tokens = sum(map(len, self.train_documents))
        self.unigram = unigram_log_probability(self.train_documents, settings.vocab_size)
        self.model = build_model(settings)
        self.optimizers = build_optimizers(self.model, settings)
        self.step = 0
        self.wall_seconds = 0.0
        self.core_seconds = 0.0

    def run(self, *, save_every_seconds: float, state_path: Path | None) -> None:
        """Train to the last step, saving model, card and state on the way."""
        batches = training_batches(self.train_documents, self.settings)
        for _ in range(self.step):  # a resumed run sees the batches that it has not seen
            next(batches)
        started, cores_started = time.monotonic(), time.process_time()
        progress = tqdm(total=self.settings.num_steps, initial=self.step, unit="step", mininterval=5)
        while self.step < self.settings.num_steps:
            loss = train_step(self.model, self.optimizers, next(batches), self.step, self.settings)
            self.step += 1
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            progress.update()
            if time.monotonic() - started > save_every_seconds or self.step == self.settings.num_steps:
                self.wall_seconds += time.monotonic() - started
                self.core_seconds += time.process_time() - cores_started
                self.save(state_path)
                started, cores_started = time.monotonic(), time.process_time()
        progress.close()

    def save(self, state_path: Path | None) -> None:
        """Write the model and its card; with a path, also what `restore` needs."""
        save_model(self.model, self.tokenizer, self.out)
        (self.out / "README.md").write_text(self.card(), encoding="utf-8")
        if state_path is not None:
            facts = {"step": self.step, "wall_seconds": self.wall_seconds, "core_seconds": self.core_seconds}
            temporary = state_path.with_suffix(".tmp")
            save_file(self.state_tensors(), temporary, metadata={"facts": json.dumps(facts)})
            temporary.replace(state_path)

    def restore(self, state_path: Path) -> None:
        """Continue from a state that `save` wrote; the number of steps may differ, the other settings not."""
        with safe_open(state_path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        self.step = facts["step"]
        self.wall_seconds, self.core_seconds = facts["wall_seconds"], facts["core_seconds"]
        for name, parameter, optimizer in self.trained_parameters():
            parameter.data.copy_(tensors[f"model/{name}"])
            prefix = f"optimizer/{name}/"
            optimizer.state[parameter] = {
                key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)
            }

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameters and the optimizers' moments, by the name of the parameter."""
        tensors = {}
        for name, parameter, optimizer in self.trained_parameters():
            tensors[f"model/{name}"] = parameter.detach()
            moments = optimizer.state[parameter]
            tensors |= {f"optimizer/{name}/{key}": moment for key, moment in moments.items()}
        return tensors

    def trained_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter, torch.optim.Optimizer]]:
        """Every parameter with its name and the optimizer that updates it."""
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    yield names[parameter], parameter, optimizer

    def card(self) -> str:
        """The model card, with the losses of the model as saved: read back from `out`, in float32."""
        model = AutoModelForCausalLM.from_pretrained(
            self.out, dtype=torch.float32, trust_remote_code=False
        ).eval()
        by_name = {
            name: document_loss(
                model, self.tokenizer, text, self.unigram, context_tokens=self.settings.context_tokens
            )
            for name, text in self.heldout
        }
        outside_tables = (loss for name, loss in by_name.items() if not name.startswith(TABLES_PREFIX))
        losses = {
            "all held-out documents": total(by_name.values()),
            f"held-out documents outside `{TABLES_PREFIX}`": total(outside_tables),
        }
        for what, loss in losses.items():
            tqdm.write(f"step {self.step}: {what}: {loss.model_nats / loss.num_tokens:.4f} nats per token")
        return model_card(losses, self.facts(model.num_parameters()), asdict(self.settings))

    def facts(self, num_parameters: int) -> dict[str, object]:
        """What the card tells about the run, besides its settings."""
        seen_tokens = self.step * self.settings.sequences_per_step * self.settings.context_tokens
        return {
            "parameters": f"{num_parameters:,}",
            "training text": f"{len(self.train_documents)} documents, {self.num_train_bytes:,} bytes, "
            f"{self.num_train_tokens:,} tokens",
            "held-out text": f"{len(self.heldout)} documents",
            "training steps done": f"{self.step} of {self.settings.num_steps}",
            "training tokens seen": f"{seen_tokens:,} ({seen_tokens / self.num_train_tokens:.1f} epochs)",
            "training time": f"{self.wall_seconds / 60:.0f} minutes, "
            f"{self.core_seconds / 60:.0f} core-minutes",
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "sha256 of the text": f"`{stdlib_fingerprint()}`",
        }


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo model on Python's own standard library.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the model, the tokenizer and the card"
    )
    parser.add_argument("--state", type=Path, help="file to save the run's state in, and to continue from")
    parser.add_argument("--save-minutes", type=float, default=5.0, help="minutes between two saves")
    parser.add_argument(
        "--threads", type=int, help="CPU threads; 1 is the fastest on a machine with other work"
    )
    parser.add_argument(
        "--steps", type=int, default=DemoModelSettings.num_steps, help="optimizer steps in all"
    )
    parser.add_argument("--seed", type=int, default=DemoModelSettings.seed)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    training = DemoTraining(DemoModelSettings(num_steps=arguments.steps, seed=arguments.seed), arguments.out)
    if arguments.state is not None and arguments.state.exists():
        training.restore(arguments.state)
    training.run(save_every_seconds=60 * arguments.save_minutes, state_path=arguments.state)


if __name__ == "__main__":
    main()
