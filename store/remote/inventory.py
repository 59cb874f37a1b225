"""What the place of a cache holds, for a push or a harvest that brings objects there."""

from pathlib import Path

from .cache_objects import PROVENANCE, CacheObject
from .places.object_requests import ObjectInfo, OnBytes, ignore_bytes
from .places.remote_folder import RemoteFolder


class Inventory:
    """The objects at ``folder`` as they were listed last, and the ETags of those that are known to be right.

    Args:
        verify: read what is there, instead of trusting the sha256 that is recorded beside each object.
    """

    def __init__(self, folder: RemoteFolder, *, verify: bool = False) -> None:
        self.folder = folder
        self.verify = verify
        self.listed: dict[str, ObjectInfo] = {}
        self._etags: dict[str, str] = {}

    def refresh(self, must_show: str | None = None) -> None:
        """List the place again. A listing without the object ``must_show`` is not believed."""
        self.listed = {info.key: info for info in self.folder.objects(must_show=must_show)}

    def has(self, wanted: CacheObject) -> bool:
        """Whether the place has these bytes. Objects that this command wrote or compared cost no request."""
        listed = self.listed.get(wanted.key)
        if wanted.key == PROVENANCE:  # two caches that are otherwise the same differ here: the first stays
            return listed is not None
        if listed is None or listed.size != wanted.size:
            return False
        if listed.etag is not None and listed.etag == self._etags.get(wanted.key):
            return True
        if listed.sha256 == wanted.sha256 and not self.verify:  # listings of the Hub have it
            return True
        found = self.folder.find_equal(wanted.key, size=wanted.size, sha256=wanted.sha256, read=self.verify)
        return found is not None and self._note(found)

    def upload(self, path: Path, wanted: CacheObject, on_bytes: OnBytes = ignore_bytes) -> None:
        """Write a local file to its object; errors as of :meth:`RemoteFolder.upload`."""
        self._note(
            self.folder.upload(path, wanted.key, size=wanted.size, sha256=wanted.sha256, on_bytes=on_bytes)
        )

    def _note(self, info: ObjectInfo) -> bool:
        self.listed[info.key] = info
        if info.etag is not None:
            self._etags[info.key] = info.etag
        return True
