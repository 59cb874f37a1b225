"""Which rows of a cache are measured, in which blocks they are read, and which documents they are from.

Legend: N measured rows, B rows of a block.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..common.errors import UsageError
from ..store import ActivationCache
from ..train import SAE
from ..train.sae_config import SAEConfig
from .config import EvaluateConfig
from .metrics.bootstrap import MIN_GROUPS, group_documents

_TRAIN_SHARE = 0.1  # of the training rows, measured if there are no held-out rows
_LOCATED_ROWS = 1 << 16
_FEW_ACTIVE = 10  # rows on which a latent is active on average; below, most rare latents look dead
DEFAULT_BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class MeasuredRows:
    """The rows that are measured: ``first`` to ``first + count`` of ``split``."""

    split: str
    first: int
    count: int

    def blocks(self, rows_per_block: int) -> Iterator[range]:
        """Ranges of row numbers of the split, in order."""
        last = self.first + self.count
        for start in range(self.first, last, rows_per_block):
            yield range(start, min(start + rows_per_block, last))

    def batches(self, batch_rows: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Row numbers of the split in batches of a uniform shuffle, as in training; ascending within a batch.

        Every batch is full: rows that are left over are not measured. With fewer rows than a batch there is
        one batch of all of them.
        """
        size = min(batch_rows, self.count)
        order = np.random.default_rng(seed).permutation(self.count)
        for start in range(0, self.count - size + 1, size):
            yield self.first + np.sort(order[start : start + size])


@dataclass(frozen=True, kw_only=True)
class RowGroups:
    """The group of documents of each measured row: ``number`` int64 [N], from 0 to ``count - 1``."""

    number: NDArray[np.int64]
    count: int

    def of(self, places_B: NDArray[np.int64]) -> Tensor:
        """The groups of some measured rows, counted from the first measured one: int64 [B]."""
        return torch.from_numpy(self.number[places_B])


def choose_rows(cache: ActivationCache, max_rows: int) -> tuple[MeasuredRows, list[str]]:
    """Choose the first ``max_rows`` held-out rows, or the last tenth of the training rows if there are none.

    Returns:
        The rows, and warnings: one if training rows are measured.

    Raises:
        UsageError: there are fewer than 2 such rows, which have no variance.
    """
    heldout = cache.num_rows("heldout")
    if heldout:
        rows, warnings = MeasuredRows(split="heldout", first=0, count=min(heldout, max_rows)), []
    else:
        count = min(max_rows, max(1, round(len(cache) * _TRAIN_SHARE)))
        rows = MeasuredRows(split="train", first=len(cache) - count, count=count)
        warnings = [
            f"The cache has no held-out rows, so the last {count:,} training rows were measured, on which "
            "the SAEs may have been trained. Harvest with heldout_fraction to measure on unseen documents."
        ]
    if rows.count < 2:
        raise UsageError(
            f"{cache.path}: {rows.count} {rows.split} rows are to be measured, expected at least 2, because "
            "one row has no variance; raise max_rows, or harvest more held-out documents"
        )
    return rows, warnings


def group_rows(cache: ActivationCache, rows: MeasuredRows) -> RowGroups:
    """Find the documents of the measured rows, and group them for the bootstrap."""
    document = np.empty(rows.count, dtype=np.int64)
    for block in rows.blocks(_LOCATED_ROWS):
        start = block.start - rows.first
        document[start : start + len(block)] = cache.locate(np.asarray(block), split=rows.split)[2]
    number, count = group_documents(document)
    return RowGroups(number=number, count=count)


def read_blocks(rows: MeasuredRows, sae: SAE, settings: EvaluateConfig) -> Iterator[NDArray[np.int64]]:
    """The row numbers of the blocks in which ``sae`` is measured: int64 [B], ascending within a block.

    By the training rule a block is a batch of the size that the SAE was trained with, whatever
    ``rows_per_block`` is, because the rule looks at the whole batch.
    """
    if settings.rule == "batch":
        yield from rows.batches(batch_rows_of(sae, settings), settings.seed)
    else:
        for block in rows.blocks(settings.rows_per_block):
            yield np.arange(block.start, block.stop)


def batch_rows_of(sae: SAE, settings: EvaluateConfig) -> int:
    """Rows of a batch for the training rule: as set, else those of the SAE's training."""
    trained = sae.cfg.training.get("batch_rows")
    return settings.batch_rows or (
        trained if isinstance(trained, int) and trained > 0 else DEFAULT_BATCH_ROWS
    )


def warn_of_few_rows(rows: MeasuredRows, groups: RowGroups, configs: Mapping[str, SAEConfig]) -> list[str]:
    """What the measured rows are too few for, in words; nothing if they are enough."""
    warnings = []
    if groups.count < MIN_GROUPS:
        warnings.append(
            f"The {rows.count:,} measured rows are from {groups.count} documents; confidence intervals need "
            f"{MIN_GROUPS} or more, so none are given."
        )
    for name, cfg in configs.items():
        active = rows.count * (cfg.k or 0) / cfg.num_latents
        if cfg.k and active < _FEW_ACTIVE:
            needed = -(-_FEW_ACTIVE * cfg.num_latents // max(1, round(cfg.k)))
            warnings.append(
                f"{name}: {rows.count:,} rows make each of {cfg.num_latents:,} latents active on "
                f"{active:.2g} rows on average, so that rare latents look dead. Dead and dying latents, "
                f"densities and their Zipf fit need about {needed:,} rows."
            )
    return warnings
