"""Caches in object storage."""

from .remote_folder import ObjectInfo, RemoteFolder, open_remote_folder
from .retries import Patience
from .urls import is_url

__all__ = ["ObjectInfo", "Patience", "RemoteFolder", "is_url", "open_remote_folder"]
