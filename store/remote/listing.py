"""Listings of a place in object storage, none of which is believed without a reason."""

import asyncio
from collections.abc import Callable
from typing import TypeVar
from uuid import uuid4

from .failures import RemoteError
from .object_requests import ObjectInfo, ObjectRequests

T = TypeVar("T")
_LISTED_AT_ONCE = 1000  # what S3 gives


def list_objects(
    place: ObjectRequests, prefix: str = "", *, must_show: str | None = None, most: int | None = None
) -> list[ObjectInfo]:
    """Every object below ``prefix``; see :meth:`RemoteFolder.objects`."""
    import obstore

    bucket = place.bucket
    path = place.name_of(prefix) if prefix else bucket.key(place.prefix)

    async def gather() -> list[ObjectInfo]:
        pages = aiter(obstore.list(bucket.store("reading"), path or None, chunk_size=_LISTED_AT_ONCE))
        found: dict[str, ObjectInfo] = {}
        seconds = bucket.patience.upload_seconds
        while (page := await asyncio.wait_for(anext(pages, None), seconds)) is not None:
            for meta in page:
                info = place.info(meta, None)
                if info.key in found:
                    raise RemoteError(f"listing {place.url}: the server lists {info.key} twice")
                found[info.key] = info
                if len(found) == most:
                    return [*found.values()]
        return [*found.values()]

    def once() -> list[ObjectInfo]:
        with place.translated("listing"):
            found = bucket.ask(gather, bounded=False)
        if must_show is not None and all(info.key != must_show for info in found):
            _doubt(place, place.head(must_show) is not None, f"does not show {must_show}, which is there")
        return found

    return place.repeat(once) or _confirm_empty(place, once)


def list_folders(place: ObjectRequests) -> tuple[list[str], list[ObjectInfo]]:
    """(names of the folders, objects) directly at a place."""
    import obstore

    bucket = place.bucket

    def once() -> tuple[list[str], list[ObjectInfo]]:
        with place.translated("listing"):
            store, path = bucket.store("reading"), bucket.key(place.prefix) or None
            found = bucket.ask(lambda: obstore.list_with_delimiter_async(store, path))
            folders = [str(folder).rsplit("/", 1)[-1] for folder in found["common_prefixes"]]
            return sorted(folders), [place.info(meta, None) for meta in found["objects"]]

    found = place.repeat(once)
    return found if any(found) else _confirm_empty(place, once)


def _confirm_empty(place: ObjectRequests, listing: Callable[[], T]) -> T:
    """List again: a proxy that answers with a page of its own makes every place look empty."""
    absent = f".absent-{uuid4().hex}"
    if place.bucket.stores_attributes:
        _doubt(place, place.head(absent) is not None, f"claims to have {absent}, which nobody wrote")
    return place.repeat(listing)


def _doubt(place: ObjectRequests, wrong: bool, why: str) -> None:
    if wrong:
        raise RemoteError(f"listing {place.url}: {place.bucket.server} {why}; its listing is not believed")
