"""Top contexts against a search by brute force over the dense codes."""

import numpy as np
import pytest
import torch

from saecache.evaluate.latents.contexts import (
    ActivationStream,
    LatentActivations,
    choose_peaks,
    describe_latent,
    find_places,
    sample_latents,
)
from saecache.train import Pairs
from saecache.train.variants.topk import TopK

from ..conftest import CONTEXT, HOOK, make_sae


@pytest.fixture(scope="module", params=["positive", "signed"])
def dense(cache, request) -> torch.Tensor:
    """Codes of all held-out rows."""
    sae = make_sae(cache, "topk", TopK(k=4))
    codes = sae.encode(cache.rows(HOOK, np.arange(cache.num_rows("heldout")), split="heldout"))
    if request.param == "signed":  # as those of Probabilistic TopK
        codes[::3] *= -1
    return codes


def gather(dense: torch.Tensor, latents: list[int], block: int) -> dict[int, LatentActivations]:
    stream = ActivationStream(latents)
    for start in range(0, len(dense), block):
        part = dense[start : start + block]
        stream.update(Pairs.from_dense(part), np.arange(start, start + len(part)))
    return stream.columns()


@pytest.mark.parametrize("block", [13, 10**6])
def test_columns_are_the_dense_columns(dense, block: int) -> None:
    latents = [7, 40, 2]  # latent 2 never fires
    for latent, column in gather(dense, latents, block).items():
        rows = dense[:, latent].nonzero()[:, 0]
        assert np.array_equal(column.rows, rows.numpy())
        assert np.array_equal(column.values, dense[rows, latent].numpy())
        assert np.array_equal(column.at(np.arange(len(dense))), dense[:, latent].numpy())


def test_columns_without_any_rows() -> None:
    assert len(ActivationStream([3]).columns()[3].rows) == 0


def brute_force_peaks(cache, values: np.ndarray, most: int, apart: int) -> list[int]:
    """Rows in order of the activation's size, each taken unless it is near a taken one of its document."""
    sequence, position, document = cache.locate(np.arange(len(values)), split="heldout")
    chosen: list[int] = []
    for row in sorted(np.flatnonzero(values), key=lambda r: (-abs(values[r]), r)):
        near = [
            c
            for c in chosen
            if document[c] == document[row]
            and abs((sequence[c] * CONTEXT + position[c]) - (sequence[row] * CONTEXT + position[row]))
            <= apart
        ]
        if not near and len(chosen) < most:
            chosen.append(int(row))
    return chosen


@pytest.mark.parametrize("radius", [0, 3, 100])
def test_contexts_are_those_of_brute_force(cache, dense, radius: int) -> None:
    places = find_places(cache, "heldout", 0, len(dense))
    density = (dense != 0).double().mean(0)
    for latent in (int(density.argmax()), *sample_latents(density, 3, seed=1)[2:]):
        column = gather(dense, [latent], 100)[latent]
        result = describe_latent(
            cache, places, latent, column, rank=9, num_contexts=6, radius=radius, decode_token="<{}>".format
        )
        values = dense[:, latent].numpy()
        assert [c.row for c in result.contexts] == brute_force_peaks(cache, values, 6, 2 * radius)
        assert result.density == pytest.approx(density[latent].item())
        assert result.max_activation == pytest.approx(np.abs(values).max(), rel=1e-3)
        assert result.mean_activation == pytest.approx(np.abs(values[values != 0]).mean(), rel=1e-3)
        assert sum(result.activation_histogram.counts) == (values != 0).sum()
        index = cache.token_index("heldout")[:].astype(np.int64)
        for context in result.contexts:
            ids, documents = cache.tokens[context.sequence], cache.documents[context.sequence]
            start = context.position - context.peak
            window = range(start, start + len(context.tokens))
            assert context.position - radius <= start
            assert window[-1] <= context.position + radius
            assert context.token_ids == [int(ids[p]) for p in window]
            assert context.tokens == [f"<{ids[p]}>" for p in window]
            assert {int(documents[p]) for p in window} == {context.document}
            # The window is as large as the radius, the sequence and the document let it be.
            for edge in (window[0] - 1, window[-1] + 1):
                inside = 0 <= edge < CONTEXT and abs(edge - context.position) <= radius
                assert not (inside and documents[edge] == context.document)
            for p, activation in zip(window, context.activations, strict=True):
                row = np.flatnonzero(index == context.sequence * CONTEXT + p)
                if len(row):
                    assert activation == pytest.approx(values[row[0]], rel=1e-3)
                else:
                    assert activation is None
            assert context.activations[context.peak] == max(
                a for a in context.activations[context.peak :][:1]
            )


def test_what_cannot_be_written_as_utf8_is_replaced(cache, dense) -> None:
    places = find_places(cache, "heldout", 0, len(dense))
    column = gather(dense, [40], 100)[40]
    result = describe_latent(
        cache, places, 40, column, rank=1, num_contexts=1, radius=2, decode_token=lambda token: "a\ud83d"
    )
    assert set(result.contexts[0].tokens) == {"a?"}


def test_windows_of_shuffled_training_rows(cache_without_heldout) -> None:
    """Without held-out rows a token's neighbours are found by their place in the text, where measured."""
    cache = cache_without_heldout
    first = len(cache) // 2
    places = find_places(cache, "train", first, len(cache) - first)
    token = cache.token_index("train")[first:].astype(np.int64)
    for wanted in (token[0], token[5]):
        assert places.find(np.array([wanted])) == np.flatnonzero(token == wanted)
    assert places.find(np.array([int(cache.token_index("train")[0])])) == -1
    values = np.linspace(0.1, 1, len(token)).astype(np.float32)
    column = LatentActivations(rows=np.arange(len(token)), values=values)
    result = describe_latent(cache, places, 0, column, rank=1, num_contexts=3, radius=4, decode_token=str)
    assert result.contexts[0].row == len(cache) - 1
    for context in result.contexts:
        for i, activation in enumerate(context.activations):
            index = context.sequence * CONTEXT + context.position - context.peak + i
            place = np.flatnonzero(token == index)
            assert (activation is None) == (len(place) == 0)
            if len(place):
                assert activation == pytest.approx(values[place[0]], rel=1e-3)


def test_peaks_of_one_neighbourhood_are_taken_once_and_ties_go_to_the_earlier() -> None:
    values = np.array([1.0, 5.0, 5.0, 4.0, 3.0], np.float32)
    documents = np.array([0, 0, 0, 1, 0])
    token_index = np.array([50, 11, 10, 12, 14])
    assert choose_peaks(values, documents, token_index, 10, 3).tolist() == [2, 3, 4, 0]
    assert choose_peaks(values, documents, token_index, 2, 3).tolist() == [2, 3]
    assert choose_peaks(values, documents, token_index, 10, 100).tolist() == [2, 3]
    assert choose_peaks(values[:0], documents[:0], token_index[:0], 10, 3).tolist() == []


def test_sampled_latents_cover_the_ranks_and_depend_on_the_seed_only() -> None:
    density = torch.rand(1000, generator=torch.Generator().manual_seed(0)).double() ** 4
    density[:300] = 0
    sampled = sample_latents(density, 10, seed=0)
    assert sampled == sample_latents(density, 10, seed=0)
    assert sampled != sample_latents(density, 10, seed=1)
    assert len(set(sampled)) == 11
    assert sampled[0] == int(density.argmax())
    ranks = [int((density > density[latent]).sum()) for latent in sampled]
    assert ranks == sorted(ranks)
    for group, rank in enumerate(ranks[1:]):
        assert abs(rank - (group + 0.5) * 69.9) <= 36


def test_few_alive_latents_are_all_shown_and_none_when_none_is_wanted() -> None:
    density = torch.tensor([0.0, 0.2, 0.5, 0.0])
    assert sample_latents(density, 24, seed=0) == [2, 1]
    assert sample_latents(density, 0, seed=0) == []
    assert sample_latents(torch.zeros(4), 24, seed=0) == []
