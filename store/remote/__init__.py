"""Caches in object storage."""

from typing import TYPE_CHECKING

from ...common.lazy import lazy_names
from .places.urls import is_url

if TYPE_CHECKING:
    from .places.by_url import open_remote_folder as open_remote_folder
    from .places.object_requests import ObjectInfo as ObjectInfo
    from .places.remote_folder import RemoteFolder as RemoteFolder
    from .places.retries import Patience as Patience

_LAZY = {  # public name -> module of this package; what asks for is_url alone loads no object store
    "ObjectInfo": "places.object_requests",
    "Patience": "places.retries",
    "RemoteFolder": "places.remote_folder",
    "open_remote_folder": "places.by_url",
}
__all__ = ["is_url", *_LAZY]
__getattr__ = lazy_names(__name__, _LAZY)
