"""Caches in object storage."""

from .location import Location, ObjectInfo, open_location
from .settings import Patience
from .urls import is_url

__all__ = ["Location", "ObjectInfo", "Patience", "is_url", "open_location"]
