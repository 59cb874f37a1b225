"""Activations and codes of texts that are not in a cache: labelled texts, and prompts.

Legend: n texts, m positions of a batch of texts, D model width, F latents.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from torch import Tensor

from ...distributed.group import ALONE, Group
from ...store.layout import PADDING_ID
from ...train import SAE, Pairs
from ...train.sae_config import HookRows
from ...train.sae_hooks import decoded_hooks, encoded_hooks, join
from ..metrics.bootstrap import Floats

_BATCH_TOKENS = 8192

Ids = NDArray[np.int64]


class ReadModel(Protocol):
    """A language model whose activations can be read. ``harvest.LanguageModel`` is one."""

    def activations(self, ids: Tensor, hooks: Sequence[str]) -> Mapping[str, Tensor]:
        """``ids`` int64 [n, T], -1 for padding at the end -> activations [n, T, D] of each hook."""
        ...


@dataclass(frozen=True)
class TextReader:
    """The cache's language model with its tokenizer.

    Attributes:
        tokenize: texts -> ids int [t] of each, without special tokens.
        bos_id: begins every sequence, as at harvest; None for none.
        vocabulary: ids and texts of all tokens.
        max_positions: of the model; None: no limit.
    """

    model: ReadModel
    tokenize: Callable[[list[str]], Sequence[NDArray[np.integer]]]
    bos_id: int | None
    vocabulary: Callable[[], list[tuple[int, str]]]
    max_positions: int | None = None

    def encode(self, texts: list[str], context: int | None = None) -> list[Ids]:
        """Token ids of each text after BOS, cut to ``context`` positions with BOS: int64 [t] each."""
        start = np.asarray([] if self.bos_id is None else [self.bos_id], dtype=np.int64)
        return [np.concatenate([start, ids.astype(np.int64)])[:context] for ids in self.tokenize(texts)]

    @property
    def num_special(self) -> int:
        """Positions at the beginning of every sequence that hold no text."""
        return 0 if self.bos_id is None else 1


def read_positions(
    reader: TextReader,
    hooks: Sequence[str],
    sequences: Sequence[Ids],
    wanted: Sequence[NDArray[np.int64]],
    group: Group = ALONE,
) -> Iterator[tuple[dict[str, Tensor], NDArray[np.int64]]]:
    """Activations at the wanted positions of each sequence, in batches of sequences of similar length.

    The processes of ``group`` share the batches; a sequence is in one of them only.

    Yields:
        float32 [m, D] of each hook, and the sequence of each of the m positions, int64 [m].
    """
    batches = _batches(sequences)
    for number in group.share(len(batches)):
        batch = batches[number]
        ids = np.full((len(batch), len(sequences[batch[-1]])), PADDING_ID, dtype=np.int64)
        for row, i in enumerate(batch):
            ids[row, : len(sequences[i])] = sequences[i]
        row_m = np.concatenate([np.full(len(wanted[i]), row) for row, i in enumerate(batch)]).astype(np.int64)
        position_m = np.concatenate([wanted[i] for i in batch]).astype(np.int64)
        found = reader.model.activations(torch.from_numpy(ids), hooks)
        yield (
            {
                hook: found[hook][torch.from_numpy(row_m), torch.from_numpy(position_m)].float()
                for hook in hooks
            },
            np.asarray(batch, dtype=np.int64)[row_m],
        )


def _batches(sequences: Sequence[Ids]) -> list[list[int]]:
    """The numbers of all sequences, the shortest first, in batches of about :data:`_BATCH_TOKENS`."""
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    batches, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop + 1 - start) * len(sequences[order[stop]]) <= _BATCH_TOKENS:
            stop += 1
        batches.append(order[start:stop])
        start = stop
    return batches


def scale_for_probes(part: HookRows) -> float:
    """The factor that brings rows to E|x|² = D, where their normalization settles E|x|²; else 1.

    Penalties of probes depend on the size of their inputs. SAEBench's are made for activations of about this
    size; rows of norm 1 and their codes would be penalized D times as much.
    """
    settled = part.normalizer.root_mean_square
    return 1.0 if settled is None else sqrt(part.d_model) / settled


def effects_of(sae: SAE, pairs: Pairs) -> Floats:
    """How far each latent moves the reconstruction, in units of rows with E|x|² = D: float64 [P].

    That is the code times the norm of its decoder row: SAEBench asks for decoder rows of norm 1.
    """
    scale = scale_for_probes(decoded_hooks(sae.cfg)[0])
    norms_F = torch.linalg.vector_norm(sae.W_dec, dim=1)
    effects: Floats = scale * (pairs.value * norms_F[pairs.latent]).double().cpu().numpy()
    return effects


@dataclass(frozen=True)
class PooledTexts:
    """Means over the positions of each text.

    Attributes:
        raw: activations by what :func:`baseline_of` says, float64 [n, D].
        codes: codes by the SAE's name, as :func:`effects_of` sizes them, a sparse float64 [n, F].
    """

    raw: dict[str, Floats]
    codes: dict[str, Any]


def baseline_of(sae: SAE) -> str:
    """Which activations of the model the codes of an SAE are compared with; equal for SAEs that share them.

    Those of its hook; for a crosscoder those of all its hooks side by side, each as it normalizes them, with
    E|x|² = D, so that no hook outweighs the others.
    """
    return sae.cfg.hook if sae.cfg.hooks is None else repr(sae.cfg.hooks)


def pool_texts(
    reader: TextReader, saes: Mapping[str, SAE], texts: list[str], context: int, group: Group = ALONE
) -> PooledTexts:
    """Read the texts once, and average the activations of every hook and the codes of every SAE.

    BOS and padding have no part in a mean. Codes are those at inference, whatever the rule of the evaluation.
    The processes of ``group`` share the texts, and all get all means.
    """
    hooks = list(dict.fromkeys(part.hook for sae in saes.values() for part in encoded_hooks(sae.cfg)))
    compared = {baseline_of(sae): sae for sae in saes.values()}
    sequences = reader.encode(texts, context)
    wanted = [np.arange(reader.num_special, len(ids)) for ids in sequences]
    lengths = np.maximum([len(positions) for positions in wanted], 1)
    raw = {baseline: np.zeros((len(texts), sae.cfg.d_model)) for baseline, sae in compared.items()}
    codes: dict[str, list[Any]] = {name: [] for name in saes}
    order = [np.zeros(0, dtype=np.int64)]
    with group.together():
        for activations, text_m in read_positions(reader, hooks, sequences, wanted, group):
            distinct, place_m = np.unique(text_m, return_inverse=True)  # a text is in one batch only
            order.append(distinct)
            for baseline, sae in compared.items():
                x_mD = join(sae.cfg, {part.hook: activations[part.hook] for part in encoded_hooks(sae.cfg)})
                if sae.cfg.hooks is not None:
                    x_mD = scale_for_probes(sae.cfg.hooks[0]) * sae.normalizer.apply(x_mD)[0]
                np.add.at(raw[baseline], text_m, x_mD.cpu().double().numpy())
            for name, sae in saes.items():
                x_mD = join(sae.cfg, {part.hook: activations[part.hook] for part in encoded_hooks(sae.cfg)})
                pairs = sae.encode_sparse(x_mD.to(sae.W_dec.device), input="raw")
                row_P = place_m[pairs.rows().cpu().numpy()]
                entries = (effects_of(sae, pairs), (row_P, pairs.latent.cpu().numpy()))
                codes[name].append(csr_array(entries, shape=(len(distinct), sae.cfg.num_latents)))
    own = np.concatenate(order)
    text_n = np.concatenate(gather_arrays(group, own))
    for sums_nD in raw.values():
        sums_nD[text_n] = np.concatenate(gather_arrays(group, sums_nD[own]))
        sums_nD /= lengths[:, None]
    selector = csr_array(
        (1 / lengths[text_n], (text_n, np.arange(len(text_n)))), shape=(len(texts), len(text_n))
    )
    return PooledTexts(
        raw=raw,
        codes={
            name: csr_array(selector @ gather_sparse(group, codes[name], sae.cfg.num_latents))
            for name, sae in saes.items()
        },
    )


def gather_arrays(group: Group, rows: NDArray[Any]) -> list[NDArray[Any]]:
    """The arrays [n, ...] of all processes; n may differ."""
    return [rows] if group.size == 1 else [t.numpy() for t in group.gather_rows(torch.from_numpy(rows))]


def gather_sparse(group: Group, parts: Sequence[Any], num_columns: int) -> Any:
    """The sparse rows of all processes below each other."""
    own = csr_array(vstack([csr_array((0, num_columns)), *parts]))
    if group.size == 1:
        return own
    counts, columns, values = (
        np.concatenate(gather_arrays(group, array))
        for array in (np.diff(own.indptr).astype(np.int64), own.indices.astype(np.int64), own.data)
    )
    ptr = np.concatenate([[0], np.cumsum(counts)])
    return csr_array((values, columns, ptr), shape=(len(counts), num_columns))
