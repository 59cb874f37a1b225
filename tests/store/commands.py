"""``saecache cache ...`` without a process of its own."""

from pathlib import Path

from typer.testing import CliRunner, Result

from saecache.cli import app


def saecache(*arguments: str | Path) -> Result:
    """One command: its exit_code, stdout and stderr."""
    return CliRunner().invoke(app, ["cache", *map(str, arguments)])
