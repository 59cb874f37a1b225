"""The text of a harvest as batches of sequences, from anywhere in it to the target."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import SelectionConfig
from ..plan import HarvestPlan
from ..text.packing import EXCLUDED, Cursor, Role, Sequences, pack
from ..text.tokenizing import tokenized


class TokenBatch(NamedTuple):
    """Consecutive sequences, and which of their positions become rows as far as roles go."""

    sequences: Sequences
    keep: NDArray[np.bool_]

    def part(self, start: int, stop: int) -> "TokenBatch":
        """The sequences ``start:stop`` of the batch."""
        return TokenBatch(self.sequences[start:stop], self.keep[start:stop])


def token_batches(
    plan: HarvestPlan, start: Cursor, tokens_done: int, batch_size: int
) -> Iterator[TokenBatch]:
    """Batches of ``batch_size`` from ``start`` on, up to the first sequence that reaches ``num_tokens``.

    Ends earlier when the text does. The sequences do not depend on ``batch_size``.
    """
    assert plan.source is not None
    documents = tokenized(plan.source.documents(start.document), plan.tokenizer)
    wanted = plan.config.num_tokens - tokens_done
    if wanted <= 0:
        return
    for sequences in pack(documents, plan.rule, start, batch_size):
        ends = np.cumsum(sequences.token_counts())
        enough = int(np.searchsorted(ends, wanted)) + 1
        if enough <= len(sequences):
            sequences = sequences.first(enough)
        yield TokenBatch(sequences, keep_by_role(sequences.roles, plan.config.selection))
        wanted -= int(ends[len(sequences) - 1])
        if wanted <= 0:
            return


def keep_by_role(roles: NDArray[np.uint8], selection: SelectionConfig) -> NDArray[np.bool_]:
    """Positions that become rows as far as roles go. bool, shape of ``roles``."""
    keep: NDArray[np.bool_] = (roles != Role.PADDING) & (roles < EXCLUDED)
    if selection.exclude_bos:
        keep &= roles != Role.BOS
    if selection.exclude_separator:
        keep &= roles != Role.SEPARATOR
    return keep
