"""What is collected of all latents in one pass, against searches by brute force over the dense codes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saecache.evaluate.latents.candidates import draw_priorities
from saecache.evaluate.latents.contexts import sample_latents
from saecache.evaluate.latents.rows import find_latent_rows
from saecache.evaluate.latents.sample import describe_latents
from saecache.evaluate.latents.table import TOP
from saecache.evaluate.rows import MeasuredRows

from ..conftest import CONTEXT, LATENTS
from .conftest import SETTINGS


def same(first, second) -> bool:
    arrays, others = first.arrays(), second.arrays()
    return arrays.keys() == others.keys() and all(
        np.array_equal(arrays[name], others[name]) and arrays[name].dtype == others[name].dtype
        for name in arrays
    )


@pytest.mark.parametrize("block", [1, 13, 10**6])
def test_blocks_make_no_difference(dense, collect, block: int) -> None:
    assert same(collect(dense), collect(dense, block=block))


def test_how_often_and_how_strongly(dense, collect) -> None:
    found = collect(dense)
    values = dense.abs().double().numpy()
    assert np.array_equal(found.fires, (values != 0).sum(0))
    assert np.array_equal(found.largest, values.max(0).astype(np.float32))
    for latent in range(LATENTS):
        active = values[values[:, latent] != 0, latent]
        end = float(found.histogram_end[latent])
        if len(active) == 0:
            assert (end, found.mean[latent], found.histogram[latent].sum()) == (0, 0, 0)
            continue
        assert active.max() < end <= 2 * active.max()
        assert np.log2(end) == round(np.log2(end))
        assert found.mean[latent] == pytest.approx(active.mean(), rel=1e-6)
        assert np.array_equal(found.histogram[latent], np.histogram(active, 64, (0, end))[0])


def brute_force_top(dense_N: np.ndarray, group_N: np.ndarray, token_N: np.ndarray, most: int) -> list[int]:
    """The tokens of the largest sizes, the first of each group."""
    chosen: dict[int, int] = {}
    for row in sorted(np.flatnonzero(dense_N), key=lambda r: (-abs(dense_N[r]), token_N[r])):
        chosen.setdefault(int(group_N[row]), int(token_N[row]))
    return list(chosen.values())[:most]


@pytest.mark.parametrize("num_contexts", [6, 60])
def test_top_contexts_are_those_of_brute_force(cache, dense, rows, collect, num_contexts: int) -> None:
    found = collect(dense, replace(SETTINGS, num_contexts=num_contexts))
    document = cache.locate(np.arange(len(dense)), split="heldout")[2]
    num_documents = len(np.unique(document))
    group = document
    if num_documents < 4 * num_contexts:  # then a stretch of seven tokens of a passage takes its place
        passage = rows.passages.passage_of(rows.offset)
        group = passage * CONTEXT + (rows.offset - rows.passages.ptr[passage]) // 7
    assert (num_contexts == 60) == (num_documents < 4 * num_contexts)
    for latent in range(LATENTS):
        own = slice(found.context_ptr[latent], found.context_ptr[latent + 1])
        top = found.context_token[own][found.context_fifth[own] == TOP]
        assert top.tolist() == brute_force_top(dense[:, latent].numpy(), group, rows.offset, num_contexts)


def test_contexts_of_all_fifths_and_of_new_documents(cache, dense, rows, collect) -> None:
    """With a sample of all activations, percentiles and fifths are exact."""
    found = collect(dense, replace(SETTINGS, num_sampled=len(dense)))
    document = cache.locate(np.arange(len(dense)), split="heldout")[2]
    row_of = {int(token): row for row, token in enumerate(rows.offset)}
    seen = np.zeros(5, dtype=int)
    for latent in range(LATENTS):
        own = range(found.context_ptr[latent], found.context_ptr[latent + 1])
        sizes = np.abs(dense[:, latent].numpy())
        active = np.flatnonzero(sizes)
        active = active[np.lexsort((rows.offset[active], sizes[active]))]
        rank = {int(row): r for r, row in enumerate(active)}
        shown: set[int] = set()
        fifths = []
        for context in own:
            row = row_of[int(found.context_token[context])]
            assert row not in shown
            shown.add(row)
            fifth = int(found.context_fifth[context])
            fifths.append(fifth)
            if fifth == TOP:
                assert found.context_percentile[context] == -1
                continue
            share = (rank[row] + 0.5) / len(active)
            assert found.context_percentile[context] == pytest.approx(100 * share, rel=1e-5)
            assert fifth == int(5 * share)
            seen[fifth] += 1
        assert fifths == [TOP] * fifths.count(TOP) + sorted((f for f in fifths if f != TOP), reverse=True)
        assert max((fifths.count(f) for f in range(5)), default=0) <= 2
        drawn = draw_priorities(np.full(len(active), latent), rows.offset[active], SETTINGS.seed)
        documents = {int(document[row_of[int(found.context_token[c])]]) for c in own[: fifths.count(TOP)]}
        top = {int(found.context_token[c]) for c in own[: fifths.count(TOP)]}
        expected: dict[int, list[tuple[bool, int]]] = {fifth: [] for fifth in range(5)}
        for row in active[np.argsort(drawn)]:
            if int(rows.offset[row]) in top:
                continue
            known = int(document[row]) in documents  # shown above, or drawn before
            documents.add(int(document[row]))
            expected[int(5 * (rank[int(row)] + 0.5) / len(active))].append((known, int(row)))
        chosen = [
            row for fifth in (4, 3, 2, 1, 0) for _, row in sorted(expected[fifth], key=lambda e: e[0])[:2]
        ]
        assert [row_of[int(found.context_token[c])] for c in own[fifths.count(TOP) :]] == chosen
    assert (seen > 20).all()


def test_windows_hold_what_the_latent_does_around(cache, dense, rows, collect) -> None:
    found = collect(dense)
    index = cache.token_index("heldout")[:].astype(np.int64)
    row_of_token = {int(token): row for row, token in enumerate(index)}
    density = (dense != 0).double().mean(0)
    sampled = sample_latents(density, 5, seed=1)
    for result in describe_latents(found, rows, sampled, density.numpy()):
        values = dense[:, result.index].numpy()
        assert result.density == pytest.approx(density[result.index].item())
        assert result.rank == 1 + int((density > density[result.index]).sum()) + int(
            (density[: result.index] == density[result.index]).sum()
        )
        assert result.max_activation == pytest.approx(np.abs(values).max(), rel=1e-3)
        assert sum(result.activation_histogram.counts) == (values != 0).sum()
        assert len(result.activation_histogram.edges) == len(result.activation_histogram.counts) + 1
        assert result.contexts
        for context in result.contexts:
            ids, documents = cache.tokens[context.sequence], cache.documents[context.sequence]
            start = context.position - context.peak
            window = range(start, start + len(context.tokens))
            assert context.position - 3 <= start
            assert window[-1] <= context.position + 3
            assert context.token_ids == [int(ids[p]) for p in window]
            assert context.tokens == [f"<{ids[p]}>" for p in window]
            assert {int(documents[p]) for p in window} == {context.document}
            for edge in (window[0] - 1, window[-1] + 1):  # as large as sequence and document let it be
                inside = 0 <= edge < CONTEXT and abs(edge - context.position) <= 3
                assert not (inside and documents[edge] == context.document)
            assert cache.locate(np.array([context.row]), split="heldout")[1][0] == context.position
            for p, activation in zip(window, context.activations, strict=True):
                row = row_of_token.get(context.sequence * CONTEXT + p)
                if row is None:
                    assert activation is None
                else:
                    assert activation == pytest.approx(values[row], rel=1e-3)


def test_nearest_latents_and_logit_effects(sae, dense, collect, unembedding) -> None:
    found = collect(dense)
    unit = torch.nn.functional.normalize(sae.W_dec.double(), dim=1)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-2)
    for latent in range(LATENTS):
        expected = cosine[latent].sort(descending=True)
        assert found.nearest[latent].tolist() == expected.indices[:8].tolist()
        assert found.nearest_cosine[latent] == pytest.approx(expected.values[:8].numpy(), abs=1e-6)
    centered = unit - unit.mean(1, keepdim=True)
    effects = centered @ unembedding.weight.double().T
    for latent in (0, 17):
        order = effects[latent].argsort(descending=True)
        assert found.promoted[latent].tolist() == order[:10].tolist()
        assert found.suppressed[latent].tolist() == order.flip(0)[:10].tolist()
        assert found.promoted_effect[latent] == pytest.approx(effects[latent][order[:10]].numpy(), abs=1e-5)
    assert "centered" in found.info.logits
    without = collect(dense, with_model=False)
    assert without.promoted is None
    assert "language model was not at hand" in without.info.logits


def test_coactive_latents_by_jaccard(dense, collect) -> None:
    found = collect(dense, replace(SETTINGS, num_sampled=len(dense)))
    active = (dense != 0).double()
    both = active.T @ active
    fires = active.sum(0)
    jaccard = both / (fires[:, None] + fires - both).clamp_min(1)
    jaccard.fill_diagonal_(0)
    for latent in range(LATENTS):
        shown = found.coactive[latent][found.coactive[latent] >= 0]
        expected = jaccard[latent].sort(descending=True).values[: len(shown)]
        assert jaccard[latent][shown.astype(int)].numpy() == pytest.approx(expected.numpy())
        share = both[latent][shown.astype(int)] / fires[latent]
        assert found.coactive_share[latent][: len(shown)] == pytest.approx(share.numpy(), rel=1e-6)
        assert len(shown) == min(8, int((jaccard[latent] > 0).sum()))


def test_a_sample_estimates_the_shares(dense, collect) -> None:
    exact = collect(dense, replace(SETTINGS, num_sampled=len(dense)))
    sampled = collect(dense, replace(SETTINGS, num_sampled=64))
    frequent = np.flatnonzero(exact.fires > 100)
    assert len(frequent) > 5
    for latent in frequent:
        shares = dict(zip(exact.coactive[latent].tolist(), exact.coactive_share[latent], strict=True))
        for other, share in zip(sampled.coactive[latent], sampled.coactive_share[latent], strict=True):
            if int(other) in shares:
                assert abs(shares[int(other)] - share) < 0.25  # four standard errors


def test_rows_beyond_the_limit_are_left_out_whatever_the_blocks(dense, collect, rows) -> None:
    limit = 1001
    parts = [collect(dense, block=block, max_pairs=limit) for block in (7, 10**6)]
    assert same(*parts)
    count = int(np.searchsorted(np.cumsum((dense != 0).sum(1).numpy()), limit, side="right"))
    assert parts[0].info.num_rows == count
    assert parts[0].text_measured.sum() == count
    assert np.array_equal(parts[0].fires, (dense[:count] != 0).sum(0).numpy())


def test_a_latent_that_nothing_activates(dense, collect) -> None:
    found = collect(torch.zeros_like(dense))
    assert found.fires.sum() == 0
    assert len(found.context_token) == 0
    assert (found.coactive == -1).all()


def test_what_cannot_be_written_as_utf8_is_replaced() -> None:
    from saecache.evaluate.latents.contexts import decode_tokens

    assert decode_tokens([3], lambda token: "a\ud83d") == [b"a?"]


def test_more_rows_are_whole_sequences_of_the_training_split(cache) -> None:
    measured = MeasuredRows(split="heldout", first=0, count=100)
    rows = find_latent_rows(cache, measured, 400, 0)
    assert 250 < len(rows.more) < 600
    assert rows.counts == {"heldout": 100, "train": len(rows.more)}
    sequence = cache.token_index("train")[:].astype(np.int64) // CONTEXT
    chosen = np.unique(sequence[rows.more])
    assert np.array_equal(rows.more, np.flatnonzero(np.isin(sequence, chosen)))
    tokens = np.concatenate([rows.offset, rows.more_offset])
    assert len(np.unique(tokens)) == len(tokens)
    assert np.array_equal(rows.row_of(rows.more_offset), rows.more)
    index = cache.token_index("train")[:].astype(np.int64)
    assert np.array_equal(rows.passages.token_index[rows.more_offset], index[rows.more])


def test_more_rows_are_never_measured_rows(cache_without_heldout) -> None:
    cache = cache_without_heldout
    first = len(cache) // 2
    rows = find_latent_rows(
        cache, MeasuredRows(split="train", first=first, count=len(cache) - first), 10**6, 0
    )
    assert np.array_equal(rows.more, np.arange(first))
    assert rows.counts == {"train": len(cache)}


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
