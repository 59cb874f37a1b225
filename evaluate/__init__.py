"""Measures SAEs on a cache, writes ``results.json`` and one HTML report, and exports SAEs."""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_names

if TYPE_CHECKING:
    from .config import EvaluateConfig as EvaluateConfig
    from .export import export_sae as export_sae
    from .language_model import SplicedModel as SplicedModel
    from .latents.folder import read_latents as read_latents
    from .report import write_report as write_report
    from .results import Results as Results
    from .runner import run as run
    from .table import format_table as format_table

__all__ = [
    "EvaluateConfig",
    "Results",
    "SplicedModel",
    "export_sae",
    "format_table",
    "read_latents",
    "run",
    "write_report",
]

_LAZY = {  # run, export_sae and SplicedModel import torch; the others need pydantic and results.json
    "EvaluateConfig": "config",
    "run": "runner",
    "export_sae": "export",
    "SplicedModel": "language_model",
    "Results": "results",
    "format_table": "table",
    "read_latents": "latents.folder",
    "write_report": "report",
}


__getattr__ = lazy_names(__name__, _LAZY)
