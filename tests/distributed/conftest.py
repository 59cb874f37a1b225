"""The tiny models and texts of the harvest's tests."""

from ..harvest.conftest import make_config, model_folder, text_folder

__all__ = ["make_config", "model_folder", "text_folder"]
