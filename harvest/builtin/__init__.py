"""The embedded demo: a small language model, and the text every Python has."""

from pathlib import Path

DEMO_MODEL_PATH: Path = Path(__file__).resolve().parent / "demo"
"""Folder of the demo model and its tokenizer, for `from_pretrained`."""

__all__ = ["DEMO_MODEL_PATH"]
