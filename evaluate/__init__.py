"""Cache + SAEs -> metrics, ``results.json`` and one HTML report."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import EvaluateConfig

if TYPE_CHECKING:
    from .export import export_sae as export_sae
    from .language_model import SplicedModel as SplicedModel
    from .report import write_report as write_report
    from .results import Results as Results
    from .runner import run as run
    from .table import format_table as format_table

__all__ = ["EvaluateConfig", "Results", "SplicedModel", "export_sae", "format_table", "run", "write_report"]

_LAZY = {  # the first three import torch; the others need only results.json
    "run": ".runner",
    "export_sae": ".export",
    "SplicedModel": ".language_model",
    "Results": ".results",
    "format_table": ".table",
    "write_report": ".report",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
