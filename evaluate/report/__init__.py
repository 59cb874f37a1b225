"""Draws what ``saecache evaluate`` has measured as one HTML page."""

from .page import write_report as write_report
