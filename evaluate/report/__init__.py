"""Draws what ``saecache evaluate`` has measured: one HTML page, a served page, figures for papers."""

from .page import write_report as write_report
from .plots import write_figures as write_figures
