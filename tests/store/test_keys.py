"""The hashes behind the shuffle and the split: pinned, distinct, uniform."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from saecache.store import is_heldout, row_keys
from saecache.store.keys import epoch_permutation, window_keys

GOLDEN_SEED_0 = ["0x215c02a564d2fbd5", "0x318eecefdb98f966", "0x3d796e870f6d4f96", "0xddc29186176409cd"]
GOLDEN_SEED_7 = ["0xc0df928787624f14", "0x21adf894c72e173e", "0x3b4fccda23fbb163"]
GOLDEN_PERMUTATION = [9, 3, 11, 5, 6, 4, 2, 0, 10, 7, 1, 8]
GOLDEN_HELDOUT = [3, 20, 33, 54, 56]


def test_golden_keys() -> None:
    keys = row_keys(0, np.array([0, 1, 2, 2**40], dtype=np.uint64))
    assert [hex(key) for key in keys.tolist()] == GOLDEN_SEED_0
    assert [hex(key) for key in row_keys(7, np.arange(3, dtype=np.uint64)).tolist()] == GOLDEN_SEED_7


def plain_key(seed: int, stream: int, index: int) -> int:
    """The key as store/README.md writes it."""
    bits, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(z: int) -> int:
        z &= bits
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & bits
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & bits
        return z ^ (z >> 31)

    a = mix((seed << 32) + stream + golden)
    b = mix(mix((seed >> 32) + (~golden & bits)) ^ a)
    return mix(mix(index * golden + a) ^ b)


@given(st.integers(-(2**40), 2**70), st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_keys_are_those_of_the_format(seed: int, index: int, epoch: int) -> None:
    assert row_keys(seed, np.array([index], np.uint64)).tolist() == [plain_key(seed, 0, index)]
    rows = np.array([index >> 1], np.int64)
    assert window_keys(seed, epoch, rows).tolist() == [plain_key(seed, 3 + 4 * epoch, index >> 1)]


def test_golden_permutation() -> None:
    assert epoch_permutation(0, 1, 12).tolist() == GOLDEN_PERMUTATION


def test_golden_heldout_documents() -> None:
    assert np.flatnonzero(is_heldout(0, np.arange(60), 0.1)).tolist() == GOLDEN_HELDOUT


@given(
    st.integers(-(2**70), 2**70), st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=50, unique=True)
)
def test_distinct_indices_have_distinct_keys(seed: int, indices: list[int]) -> None:
    keys = row_keys(seed, np.array(indices, dtype=np.uint64))
    assert len(set(keys.tolist())) == len(indices)


def test_keys_do_not_depend_on_what_else_is_asked() -> None:
    indices = np.arange(1000, dtype=np.uint64)
    assert (row_keys(3, indices)[17::5] == row_keys(3, indices[17::5])).all()


def test_keys_are_uniform_and_independent_of_the_index() -> None:
    """Chi-squared of every byte of the keys of consecutive indices, and of their differences."""
    for seed in (0, 1, 12345):
        keys = row_keys(seed, np.arange(1 << 16, dtype=np.uint64))
        for values in (keys, keys[1:] - keys[:-1]):
            for shift in range(0, 64, 8):
                counts = np.bincount(
                    ((values >> np.uint64(shift)) & np.uint64(255)).astype(int), minlength=256
                )
                expected = len(values) / 256
                chi_squared = ((counts - expected) ** 2 / expected).sum()
                assert 150 < chi_squared < 380  # 255 degrees of freedom: six standard deviations each way


def test_one_bit_of_the_index_or_seed_changes_half_of_the_key() -> None:
    indices = np.arange(4096, dtype=np.uint64)
    base = row_keys(0, indices)
    for bit in range(0, 40, 3):
        changed = row_keys(0, indices ^ np.uint64(1 << bit))
        flipped = np.bitwise_count(base ^ changed).mean()
        assert 31.5 < flipped < 32.5
    for bit in range(0, 70, 5):
        assert 31.5 < np.bitwise_count(base ^ row_keys(1 << bit, indices)).mean() < 32.5


def test_streams_of_one_seed_differ() -> None:
    indices = np.arange(64)
    streams = [
        row_keys(0, indices.astype(np.uint64)),
        window_keys(0, 1, indices),
        window_keys(0, 2, indices),
        window_keys(1, 1, indices),
    ]
    assert len({tuple(stream.tolist()) for stream in streams}) == len(streams)


def test_heldout_share_and_purity() -> None:
    documents = np.arange(20000)
    heldout = is_heldout(5, documents, 0.05)
    assert 0.043 < heldout.mean() < 0.057
    assert (is_heldout(5, documents[::-1], 0.05)[::-1] == heldout).all()
    assert (is_heldout(5, documents, 0.2) >= heldout).all()  # a larger share only adds documents
    assert not is_heldout(5, documents, 0.0).any()
    assert (is_heldout(6, documents, 0.05) != heldout).any()
