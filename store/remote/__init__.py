"""Caches in object storage."""

from .access import ObjectInfo
from .location import Location, open_location
from .settings import Patience
from .urls import is_url

__all__ = ["Location", "ObjectInfo", "Patience", "is_url", "open_location"]
