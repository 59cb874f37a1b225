"""Which pairs of a batch are active: one rule per file. ``reference`` holds their slow, obvious
definitions.
"""

from .per_batch import HINT, select_per_batch
from .per_latent import select_per_latent
from .per_row import select_per_row
from .threshold import select_threshold

__all__ = ["HINT", "select_per_batch", "select_per_latent", "select_per_row", "select_threshold"]
