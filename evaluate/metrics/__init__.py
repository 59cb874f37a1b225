"""Figures of SAEs: each module holds one family, as small functions and as sums over a stream of rows."""

from .reconstruction import ReconstructionStream as ReconstructionStream
from .sparsity import CodeStream as CodeStream
from .sparsity import density_curve as density_curve
from .sparsity import l0_histogram as l0_histogram
from .sparsity import log_spaced_integers as log_spaced_integers
from .sparsity import quantile_of_counts as quantile_of_counts
