"""What is known of every latent of an SAE: the content of a folder of latents."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

FORMAT_VERSION = 1
BINS = 64  # of a histogram of activations
NUM_RELATED = 8  # nearest and co-activating latents
NUM_FIFTHS = 5  # of the activations of a latent, by size
TOP = -1  # stands for a fifth where a context is a top context
EMPTY = -1  # stands for a token or a latent where there are fewer
ARRAYS: dict[str, tuple[str, tuple[int | str, ...]]] = {
    "fires": ("int64", ("F",)),
    "largest": ("float32", ("F",)),
    "mean": ("float32", ("F",)),
    "histogram": ("int32", ("F", BINS)),
    "histogram_end": ("float32", ("F",)),
    "context_ptr": ("int64", ("F+1",)),
    "context_token": ("int32", ("C",)),
    "context_fifth": ("int8", ("C",)),
    "context_percentile": ("float32", ("C",)),
    "activation_ptr": ("int64", ("C+1",)),
    "activation_distance": ("int16", ("A",)),
    "activation_value": ("float32", ("A",)),
    "nearest": ("int32", ("F", "N")),
    "nearest_cosine": ("float32", ("F", "N")),
    "coactive": ("int32", ("F", NUM_RELATED)),
    "coactive_share": ("float32", ("F", NUM_RELATED)),
    "promoted?": ("int32", ("F", "K")),
    "promoted_effect?": ("float32", ("F", "K")),
    "suppressed?": ("int32", ("F", "K")),
    "suppressed_effect?": ("float32", ("F", "K")),
    "text": ("int32", ("L",)),
    "text_measured": ("uint8", ("L",)),
    "passage_ptr": ("int64", ("P+1",)),
    "passage_sequence": ("int64", ("P",)),
    "passage_position": ("int64", ("P",)),
    "passage_document": ("int32", ("P",)),
    "vocabulary": ("int32", ("V",)),
    "vocabulary_ptr": ("int64", ("V+1",)),
    "vocabulary_utf8": ("uint8", ("U",)),
}
"""Type and shape of each array; ``?``: absent if no language model was at hand. F latents, C contexts, A
activations in contexts, N nearest latents, K tokens promoted, L tokens of the text, P passages, V token ids
that occur, U bytes of their texts.
"""


class LatentsInfo(BaseModel):
    """What the arrays are of.

    Attributes:
        num_rows: rows on which the latents were looked at; ``rows`` has them by split.
        radius: tokens on each side of a context's own.
        logits: how the final norm enters the logit effects, or why there are none.
        sha256, num_bytes: of the file with the arrays.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    format_version: int = FORMAT_VERSION
    name: str
    hook: str
    num_latents: int
    num_rows: int
    rows: dict[str, int]
    radius: int
    cache: str
    context: int
    logits: str
    definitions: dict[str, str] = {}
    sha256: str = ""
    num_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Latents:
    """The arrays by the names of :data:`ARRAYS`; README.md of this folder says what each holds."""

    info: LatentsInfo
    fires: NDArray[np.int64]
    largest: NDArray[np.float32]
    mean: NDArray[np.float32]
    histogram: NDArray[np.int32]
    histogram_end: NDArray[np.float32]
    context_ptr: NDArray[np.int64]
    context_token: NDArray[np.int32]
    context_fifth: NDArray[np.int8]
    context_percentile: NDArray[np.float32]
    activation_ptr: NDArray[np.int64]
    activation_distance: NDArray[np.int16]
    activation_value: NDArray[np.float32]
    nearest: NDArray[np.int32]
    nearest_cosine: NDArray[np.float32]
    coactive: NDArray[np.int32]
    coactive_share: NDArray[np.float32]
    text: NDArray[np.int32]
    text_measured: NDArray[np.uint8]
    passage_ptr: NDArray[np.int64]
    passage_sequence: NDArray[np.int64]
    passage_position: NDArray[np.int64]
    passage_document: NDArray[np.int32]
    vocabulary: NDArray[np.int32]
    vocabulary_ptr: NDArray[np.int64]
    vocabulary_utf8: NDArray[np.uint8]
    promoted: NDArray[np.int32] | None = None
    promoted_effect: NDArray[np.float32] | None = None
    suppressed: NDArray[np.int32] | None = None
    suppressed_effect: NDArray[np.float32] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are there, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "info"}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def num_latents(self) -> int:
        return len(self.fires)

    def token_text(self, token: int) -> str:
        """The text of a token id that occurs."""
        place = int(np.searchsorted(self.vocabulary, token))
        own = slice(int(self.vocabulary_ptr[place]), int(self.vocabulary_ptr[place + 1]))
        return bytes(self.vocabulary_utf8[own]).decode("utf-8", "replace")
