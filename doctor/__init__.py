"""``saecache doctor``: what this machine has, whether saecache computes rightly on it, and how fast.

    findings/      facts about the machine: software, devices, disk, credentials present or not
    checks/        what must hold: the backends' operations, short training runs on the device and on the CPU
    measurements/  training steps, feed, writer, harvest, against what limits each of them
    examination.py runs the sections within their time; report.py and markdown.py hold and show the result

The tests call the same checks, so that a person with a GPU and the test suite judge alike.
"""

from typing import TYPE_CHECKING

from ..common.lazy import lazy_names
from .config import DoctorConfig

if TYPE_CHECKING:
    from .examination import examine as examine
    from .markdown import render as render
    from .report import Report as Report
    from .report import read_report as read_report

__all__ = ["DoctorConfig", "Report", "examine", "read_report", "render"]

_LAZY = {"examine": "examination", "render": "markdown", "Report": "report", "read_report": "report"}


__getattr__ = lazy_names(__name__, _LAZY)
