"""Caches in object storage."""

from typing import TYPE_CHECKING

from ...common.lazy import lazy_names
from .urls import is_url

if TYPE_CHECKING:
    from .object_requests import ObjectInfo as ObjectInfo
    from .places import open_remote_folder as open_remote_folder
    from .remote_folder import RemoteFolder as RemoteFolder
    from .retries import Patience as Patience

_LAZY = {  # public name -> module of this package; what asks for is_url alone loads no object store
    "ObjectInfo": "object_requests",
    "Patience": "retries",
    "RemoteFolder": "remote_folder",
    "open_remote_folder": "places",
}
__all__ = ["is_url", *_LAZY]
__getattr__ = lazy_names(__name__, _LAZY)
