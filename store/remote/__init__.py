"""Caches in object storage."""

from .access import ObjectInfo
from .remote_folder import RemoteFolder, open_remote_folder
from .retries import Patience
from .urls import is_url

__all__ = ["RemoteFolder", "ObjectInfo", "Patience", "is_url", "open_remote_folder"]
