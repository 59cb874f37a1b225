"""What the page's script reads of the latents: parts, small binary files, each read when it is needed.

In a report that is one file the parts are in it, compressed; ``saecache browse`` serves the same parts. A
part holds named arrays: a header in JSON with the type, the shape and the place of each, then the numbers.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..latents.table import TOP, Latents

BLOCK_LATENTS = 64
_NONE = 0xFFFFFFFF
_TYPES = {"float32": "f4", "uint32": "u4", "int32": "i4", "int16": "i2", "int8": "i1", "uint8": "u1"}

Ints = NDArray[np.int64]


def pack(arrays: dict[str, NDArray[Any]]) -> bytes:
    """The bytes of a part. Types with more bytes come first, so that every array is aligned."""
    ordered = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
    header, at, blocks = {}, 0, []
    for name, array in ordered:
        header[name] = [_TYPES[array.dtype.name], list(array.shape), at]
        blocks.append(array.tobytes())
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-(len(text) + 4) % 8)
    return b"".join([len(text).to_bytes(4, "little"), text, *blocks])


@dataclass(frozen=True, kw_only=True)
class LatentParts:
    """The parts of one SAE.

    Attributes:
        rows: int64 [n], the latents that are shown, as rows of the arrays; ``numbers`` are those of the SAE.
        token_ids: whether ``latents.vocabulary`` holds the tokenizer's ids.
    """

    latents: Latents
    rows: Ints
    numbers: Ints
    token_ids: bool = True

    @property
    def num_blocks(self) -> int:
        return -(-len(self.numbers) // BLOCK_LATENTS)

    def describe(self) -> dict[str, Any]:
        """What the script knows before it has read a part."""
        info = self.latents.info
        return {
            "shown": len(self.numbers),
            "all": info.num_latents,
            "block": BLOCK_LATENTS,
            "radius": info.radius,
            "rows": info.num_rows,
            "logits": info.logits,
            "has_logits": self.latents.promoted is not None,
        }

    def index(self) -> bytes:
        """Of every latent what lists, filters and sorting need: 20 bytes each."""
        latents, own = self.latents, self.rows
        begins, ends = latents.context_ptr[own], latents.context_ptr[own + 1]
        first = np.full(len(own), _NONE, dtype=np.uint32)
        there = begins < ends
        first[there] = latents.context_token[begins[there]]
        nearest = latents.nearest_cosine
        return pack(
            {
                "number": self.numbers.astype(np.uint32),
                "density": (latents.fires[own] / latents.info.num_rows).astype(np.float32),
                "largest": latents.largest[own],
                "first": first,
                "nearest": nearest[own, 0] if nearest.shape[1] else np.zeros(len(own), dtype=np.float32),
            }
        )

    def contexts(self) -> bytes:
        """The tokens of all contexts, for a search in the text."""
        ptr, context = _pieces(self.latents.context_ptr, self.rows)
        token = self.latents.context_token[context]
        return pack({"ptr": ptr.astype(np.uint32), "token": token.astype(np.uint32)})

    def block(self, number: int) -> bytes:
        """All that is known of ``BLOCK_LATENTS`` latents."""
        latents = self.latents
        own = self.rows[number * BLOCK_LATENTS : (number + 1) * BLOCK_LATENTS]
        context_ptr, context = _pieces(latents.context_ptr, own)
        activation_ptr, activation = _pieces(latents.activation_ptr, context)
        scale = np.repeat(latents.largest[own], np.diff(context_ptr)).repeat(np.diff(activation_ptr))
        value = latents.activation_value[activation] / np.maximum(scale, np.float32(1e-38))
        percentile = latents.context_percentile[context]
        arrays: dict[str, NDArray[Any]] = {
            "mean": latents.mean[own],
            "histogram": latents.histogram[own].astype(np.int32),
            "histogram_end": latents.histogram_end[own],
            "context_ptr": context_ptr.astype(np.uint32),
            "context_token": latents.context_token[context].astype(np.uint32),
            "context_fifth": latents.context_fifth[context],
            "context_percentile": np.where(percentile < 0, TOP, percentile).round().astype(np.int8),
            "activation_ptr": activation_ptr.astype(np.uint32),
            "activation_distance": latents.activation_distance[activation],
            "activation_share": (value.clip(-1, 1) * 32767).round().astype(np.int16),
            "nearest": latents.nearest[own],
            "nearest_cosine": latents.nearest_cosine[own],
            "coactive": latents.coactive[own],
            "coactive_share": latents.coactive_share[own],
        }
        for name in ("promoted", "suppressed"):
            tokens = getattr(latents, name)
            if tokens is not None:
                arrays[name] = self._place(tokens[own]).astype(np.uint32)
                arrays[f"{name}_effect"] = getattr(latents, f"{name}_effect")[own]
        return pack(arrays)

    def text(self) -> bytes:
        """The text of all contexts, and the tokens of its vocabulary."""
        latents = self.latents
        arrays: dict[str, NDArray[Any]] = {
            "text": self._place(latents.text).astype(np.uint32),
            "measured": latents.text_measured,
            "passage_ptr": latents.passage_ptr.astype(np.uint32),
            "sequence": latents.passage_sequence.clip(max=_NONE).astype(np.uint32),
            "position": latents.passage_position.clip(max=_NONE).astype(np.uint32),
            "document": latents.passage_document,
            "vocabulary_ptr": latents.vocabulary_ptr.astype(np.uint32),
            "vocabulary_utf8": latents.vocabulary_utf8,
        }
        if self.token_ids:
            arrays["vocabulary"] = latents.vocabulary
        return pack(arrays)

    def read(self, name: str) -> bytes | None:
        """The part of this name (``index``, ``contexts``, ``text``, ``block-3``), or None."""
        if name in ("index", "contexts", "text"):
            made: bytes = getattr(self, name)()
            return made
        kind, _, number = name.partition("-")
        if kind == "block" and number.isascii() and number.isdigit() and len(number) < 12:
            return self.block(int(number)) if int(number) < self.num_blocks else None
        return None

    def names(self) -> list[str]:
        """The names of all parts."""
        return ["index", "contexts", "text", *(f"block-{number}" for number in range(self.num_blocks))]

    def _place(self, ids: NDArray[np.int32]) -> Ints:
        """The place in the vocabulary of each token id."""
        return np.searchsorted(self.latents.vocabulary, ids)


def _pieces(ptr: Ints, own: Ints) -> tuple[Ints, Ints]:
    """The pieces ``own`` of an array that ``ptr`` cuts: where each begins when they follow one another, and
    the entries.
    """
    lengths = ptr[own + 1] - ptr[own]
    begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return begins, np.repeat(ptr[own] - begins[:-1], lengths) + np.arange(begins[-1])


def spread_over_ranks(latents: Latents, most: int) -> Ints:
    """At most ``most`` latents, ascending, evenly spaced over the ranks by density."""
    if latents.num_latents <= most:
        return np.arange(latents.num_latents)
    by_rank = np.argsort(-latents.fires, kind="stable")
    return np.sort(by_rank[np.linspace(0, latents.num_latents - 1, most).round().astype(np.int64)])
