"""Shipped recipes, and the one way from YAML and overrides to a config model."""

from .loading import Settings, load_config, read_settings
from .recipes import Recipe, find_recipe, list_recipes

__all__ = ["Recipe", "Settings", "find_recipe", "list_recipes", "load_config", "read_settings"]
