"""Shipped recipes, and the one way from YAML and overrides to a config model."""

from .loading import load_config
from .recipes import Recipe, list_recipes

__all__ = ["Recipe", "list_recipes", "load_config"]
