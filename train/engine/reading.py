"""What an SAE reads of every batch: the rows that it encodes, and the rows that it reconstructs.

An autoencoder reconstructs the rows that it encodes. A transcoder encodes the rows of one hook and predicts
those of another, for the same tokens (Dunefsky, Chlenski & Nanda 2024, "Transcoders Find Interpretable LLM
Feature Circuits", section 3). A crosscoder encodes the rows of several hooks side by side as one long row,
and is an autoencoder of that (Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model
Diffing").

Legend: B rows, D width of what is encoded, O width of what is reconstructed.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ...common.fvu import RowVariance
from ...distributed.group import ALONE, Group
from ..backends.plain.products import matmul
from ..backends.scratch import borrowed
from ..latent_shards import sum_in_order


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows of a cache: a hook, a kind of normalization (None: as the cache stores them), and the width."""

    hook: str
    normalization: str | None
    width: int


BatchRows = Mapping[Source, Tensor]
"""The rows of one batch, float32 [B, width] from each source; row b is the same token in all of them."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The sources that an SAE encodes, and those that it reconstructs, side by side each."""

    inputs: tuple[Source, ...]
    targets: tuple[Source, ...]

    @classmethod
    def autoencoder(cls, *sources: Source) -> "Reading":
        """What is read for an SAE that reconstructs its own input."""
        return cls(inputs=sources, targets=sources)

    @property
    def is_autoencoder(self) -> bool:
        return self.inputs == self.targets

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources, each once."""
        return tuple(dict.fromkeys((*self.inputs, *self.targets)))


def input_bias(parameters: Mapping[str, Tensor]) -> Tensor:
    """What is subtracted before encoding, [D]: ``b_in`` of a transcoder, else ``b_dec``."""
    return parameters["b_in"] if "b_in" in parameters else parameters["b_dec"]


@contextmanager
def centered(
    rows: BatchRows, reading: Reading, parameters: Mapping[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Lend the rows to encode, [B, D], and the rows to reconstruct, [B, O], each minus its bias.

    For an autoencoder both are the same tensor. What a skip connection predicts is subtracted from the target
    too, so that the codes reconstruct the rest: y - b_dec - W_skip (x - b_in).
    """
    with _subtracted(rows, reading.inputs, input_bias(parameters)) as x_centered:
        if reading.is_autoencoder:
            yield x_centered, x_centered
            return
        with _subtracted(rows, reading.targets, parameters["b_dec"]) as target_centered:
            if "W_skip" in parameters:
                target_centered.sub_(matmul(x_centered, parameters["W_skip"].T))
            yield x_centered, target_centered


@contextmanager
def _subtracted(rows: BatchRows, sources: Sequence[Source], bias: Tensor) -> Iterator[Tensor]:
    """Lend the rows of ``sources`` side by side, minus ``bias`` [sum of their widths]."""
    first = rows[sources[0]]
    with borrowed(first.shape[0], bias.shape[0], dtype=first.dtype, device=first.device) as whole:
        stops = list(accumulate(source.width for source in sources))
        for source, stop in zip(sources, stops, strict=True):
            part = slice(stop - source.width, stop)
            out = whole if len(sources) == 1 else whole[:, part]
            torch.sub(rows[source], bias if len(sources) == 1 else bias[part], out=out)
        yield whole


class TargetVariance:
    """The sum over rows of |y - mean|² for the rows y of several sources side by side.

    It has the interface of :class:`RowVariance` that metrics and checkpoints use.
    """

    def __init__(self, parts: Sequence[RowVariance]) -> None:
        self.parts = parts

    @property
    def rows(self) -> Tensor:
        return self.parts[0].rows

    def total(self) -> float:
        return sum(part.total() for part in self.parts)

    def tensors(self) -> dict[str, Tensor]:
        """The live state by name; that of a single source has the names of :class:`RowVariance`."""
        if len(self.parts) == 1:
            return self.parts[0].tensors()
        return {
            f"{i}.{name}": tensor
            for i, part in enumerate(self.parts)
            for name, tensor in part.tensors().items()
        }


class Inputs:
    """The :class:`RowVariance` of every source that some SAE of a run reconstructs, over all rows.

    Processes of ``row_group`` have a part of the rows of every batch each; their sums are added up in the
    order of the rows, batch by batch, so that a run that was stopped in between has the same.
    """

    def __init__(self, readings: Sequence[Reading], device: torch.device, row_group: Group = ALONE) -> None:
        sources = dict.fromkeys(source for reading in readings for source in reading.targets)
        self.of_source = {source: RowVariance(source.width, device) for source in sources}
        self._row_group = row_group

    def add(self, rows: BatchRows) -> None:
        """Take in the rows of a batch that this process has."""
        if self._row_group.size == 1:
            for source, variance in self.of_source.items():
                variance.add(rows[source])
            return
        parts = []
        for source, variance in self.of_source.items():
            own = RowVariance(source.width, variance.sum.device)
            own.add(rows[source])
            parts += [own.rows.double()[None], own.squares[None], own.sum]
        summed = sum_in_order(self._row_group.gather(torch.cat(parts)))
        sums = iter(torch.split(summed, [len(part) for part in parts]))
        for variance, (num_rows, squares, total) in zip(
            self.of_source.values(), zip(sums, sums, sums, strict=True), strict=True
        ):
            variance.rows += num_rows[0].long()
            variance.squares += squares[0]
            variance.sum += total

    def of(self, reading: Reading) -> TargetVariance:
        """The variance of what one SAE reconstructs."""
        return TargetVariance([self.of_source[source] for source in reading.targets])

    def tensors(self) -> dict[str, Tensor]:
        """The live state of all, to be zeroed."""
        return TargetVariance(list(self.of_source.values())).tensors()
