"""float16 to float32 in compiled kernels, exactly."""

import numba
import numpy as np

_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@_jit
def widen(source, row, bits):  # type: ignore[no-untyped-def]
    """Fill ``row`` float32 [D] from ``source``, float16 bits in uint16 [D]; ``bits`` is ``row`` as uint32.

    Exponent and mantissa move into place, which is the value / 2^112, subnormals included; then the factor.
    Inf and NaN come out as numbers of at least 2^16, where no finite float16 is: the last loop mends them.
    """
    for j in range(source.shape[0]):
        half = np.uint32(source[j])
        magnitude = np.uint32(np.uint32(half & np.uint32(0x7FFF)) << np.uint32(13))
        bits[j] = magnitude | np.uint32(np.uint32(half & np.uint32(0x8000)) << np.uint32(16))
    for j in range(source.shape[0]):
        row[j] = row[j] * np.float32(2.0**112)
    for j in range(source.shape[0]):
        special = np.uint32(bits[j] & np.uint32(0x7FFFFFFF)) >= np.uint32(0x47800000)
        bits[j] = np.uint32(bits[j] | (np.uint32(0x7F800000) if special else np.uint32(0)))
