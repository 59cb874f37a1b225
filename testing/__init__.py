"""Test suites to inherit: what every kind of SAE, and every writer of caches, must hold.

``VariantContract`` is for kinds of SAE, ``CacheContract`` for writers of caches. Both need pytest:
``pip install 'saecache[testing]'``. docs/plugins.md shows whole examples.
"""

from typing import TYPE_CHECKING

from ..common.errors import UsageError
from ..common.lazy import lazy_names

try:
    import pytest
except ImportError:
    raise UsageError("saecache.testing needs pytest: pip install 'saecache[testing]'") from None

if TYPE_CHECKING:
    from .cache_contract import CacheContract as CacheContract
    from .known_rows import KnownRows as KnownRows
    from .known_rows import make_known_rows as make_known_rows
    from .variant_contract import VariantContract as VariantContract
    from .variant_contract import WithoutRuns as WithoutRuns

_LAZY = {  # public name -> module of this package
    "CacheContract": "cache_contract",
    "KnownRows": "known_rows",
    "VariantContract": "variant_contract",
    "WithoutRuns": "variant_contract",
    "make_known_rows": "known_rows",
}
__all__ = [*_LAZY]
__getattr__ = lazy_names(__name__, _LAZY)

# Failed assertions of the suites then show their values, as those of test files do.
pytest.register_assert_rewrite(f"{__name__}.cache_contract", f"{__name__}.variant_contract")
