"""Windows of held-out text, and in which of them latents are active, against definitions in plain loops."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.evaluate.judge.activations import LatentActivations, Places, find_places
from saecache.evaluate.judge.config import CalibrationConfig, InterpretConfig, WindowsConfig
from saecache.evaluate.judge.examples import TooFewWindows, choose_examples
from saecache.evaluate.judge.runner import _heldout_rows
from saecache.evaluate.judge.windows import WindowCounts, Windows, cut_windows, peaks_by_window
from saecache.store.reading.reader import ActivationCache

from .conftest import CONTEXT, WINDOW, make_word_cache

SETTINGS = WindowsConfig(tokens=WINDOW, least=60, explain=20, score=30)
CALIBRATION = CalibrationConfig(explain=5, score=5)


def activations(places: Places, seed: int, share: float = 0.04) -> LatentActivations:
    """A latent that is active on random rows."""
    random = np.random.default_rng(seed)
    rows = np.flatnonzero(random.random(len(places)) < share)
    values = random.normal(size=len(rows)).astype(np.float32)
    return LatentActivations(rows=rows, values=np.where(values == 0, 1, values).astype(np.float32))


def test_windows_are_pieces_of_documents_that_do_not_overlap(
    word_cache: ActivationCache, windows: Windows
) -> None:
    taken: set[tuple[int, int]] = set()
    for sequence, start, stop, document in zip(
        windows.sequence, windows.start, windows.stop, windows.document, strict=True
    ):
        assert WINDOW // 2 <= stop - start <= WINDOW
        assert (word_cache.documents[sequence][start:stop] == document).all()
        places = {(int(sequence), position) for position in range(start, stop)}
        assert not taken & places
        taken |= places


@pytest.mark.parametrize("num_rows", [None, 1000, 1003])
def test_every_long_enough_piece_is_a_window(word_cache: ActivationCache, num_rows: int | None) -> None:
    """Against loops over the held-out rows: pieces begin with their document in a sequence."""
    num_rows = num_rows or word_cache.num_rows("heldout")
    places = find_places(word_cache, "heldout", 0, num_rows)
    windows = cut_windows(word_cache, places, WINDOW)
    measured = set(places.token_index.tolist())
    expected = []
    for sequence in range(len(word_cache.tokens)):
        documents = word_cache.documents[sequence]
        ids = word_cache.tokens[sequence]
        start = 0
        while start < CONTEXT:
            stop = start + 1
            while stop < CONTEXT and documents[stop] == documents[start]:
                stop += 1
            for begin in range(start, stop, WINDOW):
                end = min(begin + WINDOW, stop)
                rows = sum(sequence * CONTEXT + i in measured for i in range(begin, end))
                if ids[begin] >= 0 and end - begin >= WINDOW / 2 and rows >= 0.75 * (end - begin):
                    expected.append((sequence, begin, end, int(documents[begin])))
            start = stop
    found = zip(windows.sequence, windows.start, windows.stop, windows.document, strict=True)
    assert [tuple(map(int, one)) for one in found] == expected
    assert len(expected) > 100
    for place in range(0, num_rows, 7):
        sequence, position = divmod(int(places.token_index[place]), CONTEXT)
        inside = [
            i for i, (s, begin, end, _) in enumerate(expected) if s == sequence and begin <= position < end
        ]
        assert windows.of_place[place] == (inside[0] if inside else -1)


@pytest.mark.parametrize("block", [1, 7, 100, 10_000])
def test_windows_are_counted_alike_in_any_blocks(places: Places, windows: Windows, block: int) -> None:
    columns = [activations(places, seed, share=0.01 * (seed + 1)) for seed in range(5)]
    counts = WindowCounts(windows, 6)
    for start in range(0, 2000, block):
        parts = [
            (column.rows[(column.rows >= start) & (column.rows < min(start + block, 2000))], latent)
            for latent, column in enumerate(columns)
        ]
        place = np.concatenate([rows for rows, _ in parts])
        latent = np.concatenate([np.full(len(rows), number) for rows, number in parts])
        counts.update(place, latent)
    expected = [len(set(windows.of_place[column.rows[column.rows < 2000]]) - {-1}) for column in columns]
    assert counts.finish().tolist() == [*expected, 0]


def test_peaks_are_the_largest_sizes(places: Places, windows: Windows) -> None:
    column = activations(places, 1)
    found, peaks = peaks_by_window(windows, column.rows, column.values)
    by_window: dict[int, float] = {}
    for row, value in zip(column.rows, column.values, strict=True):
        window = int(windows.of_place[row])
        if window >= 0:
            by_window[window] = max(by_window.get(window, 0.0), abs(float(value)))
    assert dict(zip(found.tolist(), peaks.tolist(), strict=True)) == by_window


@pytest.mark.parametrize("seed", range(8))
def test_chosen_windows_keep_the_promises(places: Places, windows: Windows, seed: int) -> None:
    column = activations(places, seed, share=0.03 + 0.01 * seed)
    chosen = choose_examples(5, column, windows, SETTINGS, CALIBRATION, seed)
    active = set(windows.of_place[column.rows]) - {-1}
    of_document = windows.document
    explained = set(chosen.explain.tolist()) | {w for b in chosen.buckets for w in b.explain.tolist()}
    scores = [chosen.score, *(bucket.score for bucket in chosen.buckets)]
    scored = {w for score in scores for w in score.window.tolist()}
    assert not {of_document[w] for w in explained} & {of_document[w] for w in scored}
    assert explained <= active
    for score in scores:
        assert len(set(score.window.tolist())) == len(score.window)
        for window, stratum in zip(score.window, score.stratum, strict=True):
            assert (stratum >= 0) == (window in active)  # inactive on every row of the window
    assert len(chosen.explain) == 20
    assert np.bincount(chosen.score.stratum + 1).tolist() == [30, *[3] * 10]
    assert [len(bucket.explain) for bucket in chosen.buckets] == [5] * 5
    assert [
        np.bincount(b.score.stratum + 1, minlength=6)[[0, i + 1]].tolist()
        for i, b in enumerate(chosen.buckets)
    ] == [[5, 5]] * 5
    numbers, peaks = peaks_by_window(windows, column.rows, column.values)
    peak = dict(zip(numbers.tolist(), peaks.tolist(), strict=True))
    for strata in (chosen.score, chosen.buckets):
        if isinstance(strata, list):
            groups = [[peak[w] for w in b.explain.tolist()] for b in strata]
        else:
            groups = [[peak[w] for w in strata.window[strata.stratum == i].tolist()] for i in range(10)]
        for weaker, stronger in pairwise(groups):
            assert max(weaker) <= min(stronger)
    strengths = [peak[w] for w in chosen.explain.tolist()]
    assert strengths[0] > strengths[-1]


def test_a_choice_is_a_function_of_seed_and_latent(places: Places, windows: Windows) -> None:
    column = activations(places, 0, share=0.1)

    def windows_of(latent: int, seed: int) -> list[int]:
        chosen = choose_examples(latent, column, windows, SETTINGS, CALIBRATION, seed)
        return [*chosen.explain.tolist(), *chosen.score.window.tolist()]

    assert windows_of(3, 0) == windows_of(3, 0)
    assert windows_of(3, 0) != windows_of(3, 1) != windows_of(4, 1)


def test_windows_are_spread_over_documents(places: Places, windows: Windows) -> None:
    """No document gives two inactive windows before each document gave one."""
    chosen = choose_examples(0, activations(places, 0, share=0.1), windows, SETTINGS, None, 0)
    inactive = windows.document[chosen.score.window[chosen.score.stratum < 0]]
    assert len(set(inactive.tolist())) == len(inactive)
    assert chosen.buckets == [] and chosen.without_buckets is None


def test_what_is_too_little_is_said(places: Places, windows: Windows) -> None:
    few = activations(places, 0, share=0.005)
    with pytest.raises(TooFewWindows, match=r"active in \d+ windows, expected 60 or more"):
        choose_examples(0, few, windows, SETTINGS, None, 0)
    least = SETTINGS.model_copy(update={"least": 1, "explain": 10, "score": 10})
    counts = np.bincount(windows.document)  # of two documents with 20 windows, one has fewer than 10
    two = [int(counts.argmax()), int(np.flatnonzero(counts == 20 - counts.max())[0])]
    rows = np.flatnonzero(np.isin(places.document, two))
    column = LatentActivations(rows=rows, values=np.ones(len(rows), dtype=np.float32))
    with pytest.raises(TooFewWindows, match=r"documents in which it is active do not give 10 windows"):
        choose_examples(0, column, windows, least, None, 0)
    everywhere = np.arange(len(places))
    column = LatentActivations(rows=everywhere, values=np.ones(len(places), dtype=np.float32))
    with pytest.raises(TooFewWindows, match=r"inactive in 0 windows"):
        choose_examples(0, column, windows, SETTINGS, None, 0)
    scarce = choose_examples(
        0, activations(places, 0, 0.02), windows, SETTINGS, CalibrationConfig(explain=25, score=5), 0
    )
    assert scarce.buckets == [] and "bucket 1 of 5 has" in str(scarce.without_buckets)


def test_a_cache_without_heldout_rows_or_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = make_word_cache(tmp_path / "cache", heldout_fraction=0.0)
    with pytest.raises(UsageError, match=r"no held-out rows.*harvest with heldout_fraction"):
        _heldout_rows(cache, InterpretConfig())
    monkeypatch.setattr(cache, "manifest", cache.manifest.model_copy(update={"tokens": "none"}))
    with pytest.raises(UsageError, match=r"holds no token ids, so there is no text to show"):
        _heldout_rows(cache, InterpretConfig())
