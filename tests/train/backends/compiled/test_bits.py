import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from saecache.train.backends.compiled.bits import float_of_key, key, kth_key

FLOATS = st.floats(width=32, allow_nan=False)


@settings(deadline=None)  # the first call compiles
@given(FLOATS, FLOATS)
def test_keys_order_as_floats_do(a, b):
    assert (key(np.float32(a)) < key(np.float32(b))) == (a < b)
    assert (key(np.float32(a)) == key(np.float32(b))) == (a == b)
    assert float_of_key(key(np.float32(a))) == a


@settings(deadline=None)  # the first call compiles
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=80), st.data())
def test_kth_key_separates_the_k_largest(values, data):
    k = data.draw(st.integers(1, len(values)))
    keys = np.array(values, np.int32)
    least = kth_key(keys, len(values), k)
    kth = sorted(values, reverse=True)[k - 1]
    assert least <= kth
    assert least == kth or sum(v >= least for v in values) == k
