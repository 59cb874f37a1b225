"""The sampled latents of ``results.json`` as a folder of latents has them, for results without such a folder.

Results of version 0.2.0 have none, and a results file may have been moved without its folders.
"""

import numpy as np

from ...common.errors import UsageError
from ..latents.table import NUM_RELATED, Latents, LatentsInfo
from ..results import Context, LatentResult, SaeResult
from .parts import LatentParts

NOT_KNOWN = "No logit effects: these results hold only a sample of the latents."


def parts_of_samples(result: SaeResult, num_rows: int) -> LatentParts | None:
    """The parts of the sampled latents of one SAE; None if there are none.

    Args:
        num_rows: rows that were measured.

    Raises:
        UsageError: the latents contradict themselves.
    """
    sampled = sorted(result.latents, key=lambda latent: latent.index)
    if not sampled:
        return None
    try:
        with np.errstate(over="ignore"):
            return _convert(result, sampled, num_rows)
    except (ValueError, OverflowError, IndexError) as error:
        raise UsageError(f"the latents of SAE {result.name!r:.80} contradict themselves: {error}") from None


def _convert(result: SaeResult, sampled: list[LatentResult], num_rows: int) -> LatentParts:
    contexts = [context for latent in sampled for context in latent.contexts]
    for context in contexts:
        _check(context)
    words = list(dict.fromkeys(token for context in contexts for token in context.tokens))
    place = {word: number for number, word in enumerate(words)}
    texts = [word.encode("utf-8") for word in words]
    lengths = np.asarray([len(context.tokens) for context in contexts], dtype=np.int64)
    begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    active = [
        [(i - context.peak, value) for i, value in enumerate(context.activations) if value]
        for context in contexts
    ]
    numbers = [latent.index for latent in sampled]
    if len(set(numbers)) < len(numbers) or not 0 <= numbers[0] <= numbers[-1] < 1 << 32:
        raise ValueError("their numbers are not those of different latents")
    bins = max(len(latent.activation_histogram.counts) for latent in sampled)
    histogram = np.zeros((len(sampled), bins), dtype=np.int32)
    histogram_end = np.zeros(len(sampled), dtype=np.float32)
    for row, latent in enumerate(sampled):
        counts, edges = latent.activation_histogram.counts, latent.activation_histogram.edges
        histogram[row, : len(counts)] = counts
        histogram_end[row] = edges[-1] * bins / max(len(counts), 1) if edges else 0
    num_contexts = [len(latent.contexts) for latent in sampled]
    latents = Latents(
        info=LatentsInfo(
            name=result.name,
            hook=result.hook,
            num_latents=result.num_latents,
            num_rows=max(num_rows, 1),
            rows={},
            radius=int(lengths.max(initial=0)),
            cache="",
            context=0,
            logits=NOT_KNOWN,
        ),
        fires=np.asarray([round(latent.density * max(num_rows, 1)) for latent in sampled], dtype=np.int64),
        largest=np.asarray([latent.max_activation for latent in sampled], dtype=np.float32),
        mean=np.asarray([latent.mean_activation for latent in sampled], dtype=np.float32),
        histogram=histogram,
        histogram_end=histogram_end,
        context_ptr=np.concatenate([[0], np.cumsum(num_contexts)]).astype(np.int64),
        context_token=(begins[:-1] + [context.peak for context in contexts]).astype(np.int32),
        context_fifth=np.full(len(contexts), -1, dtype=np.int8),
        context_percentile=np.full(len(contexts), -1, dtype=np.float32),
        activation_ptr=np.concatenate([[0], np.cumsum([len(a) for a in active])]).astype(np.int64),
        activation_distance=np.asarray([d for a in active for d, _ in a], dtype=np.int16),
        activation_value=np.asarray([v for a in active for _, v in a], dtype=np.float32),
        nearest=np.zeros((len(sampled), 0), dtype=np.int32),
        nearest_cosine=np.zeros((len(sampled), 0), dtype=np.float32),
        coactive=np.full((len(sampled), NUM_RELATED), -1, dtype=np.int32),
        coactive_share=np.zeros((len(sampled), NUM_RELATED), dtype=np.float32),
        text=np.asarray([place[token] for context in contexts for token in context.tokens], dtype=np.int32),
        text_measured=np.asarray(
            [value is not None for context in contexts for value in context.activations], dtype=np.uint8
        ),
        passage_ptr=begins,
        passage_sequence=np.asarray([context.sequence for context in contexts], dtype=np.int64),
        passage_position=np.asarray(
            [context.position - context.peak for context in contexts], dtype=np.int64
        ),
        passage_document=np.asarray([context.document for context in contexts], dtype=np.int32),
        vocabulary=np.arange(len(words), dtype=np.int32),
        vocabulary_ptr=np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64),
        vocabulary_utf8=np.frombuffer(b"".join(texts), dtype=np.uint8),
    )
    return LatentParts(
        latents=latents,
        rows=np.arange(len(sampled)),
        numbers=np.asarray(numbers, dtype=np.int64),
        token_ids=False,
    )


def _check(context: Context) -> None:
    if not 0 <= context.peak < len(context.tokens) == len(context.activations) < 1 << 15:
        raise ValueError("a context has other numbers of tokens and activations, or its peak is not in it")
    if not 0 <= context.position - context.peak < 1 << 32 or not 0 <= context.sequence < 1 << 32:
        raise ValueError("a context is from a place that no cache has")
