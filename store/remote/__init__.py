"""Caches in object storage."""

from .object_requests import ObjectInfo
from .remote_folder import RemoteFolder, open_remote_folder
from .retries import Patience
from .urls import is_url

__all__ = ["ObjectInfo", "Patience", "RemoteFolder", "is_url", "open_remote_folder"]
