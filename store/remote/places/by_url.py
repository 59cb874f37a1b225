"""The places that hold caches, by their URLs."""

from dataclasses import replace

from .bucket import Bucket
from .hub.folder import open_hub_folder
from .remote_folder import RemoteFolder
from .retries import Patience
from .urls import parse_url


def open_remote_folder(url: str, patience: Patience | None = None, *, create: bool = False) -> RemoteFolder:
    """The place a URL names: s3://, gs://, az://, hf://, file:// or memory:// (for this process only).

    Nothing is asked of the server yet. Credentials, region and endpoint come from the standard environment
    variables and, for s3://, from the AWS profiles.

    Args:
        create: a repository of the Hub that does not exist counts as empty, and writing makes it. Buckets
            are never made.

    Raises:
        UsageError: not such a URL, or the environment's settings contradict each other.
    """
    parsed = parse_url(url)
    patience = patience or Patience()
    if parsed.scheme in ("file", "memory"):  # what a disk refuses, it refuses again
        patience = replace(patience, max_retries=min(patience.max_retries, 3))
    if parsed.scheme == "hf":
        return open_hub_folder(parsed, patience, create=create)
    return RemoteFolder(Bucket(parsed, patience), str(parsed), parsed.prefix)


RemoteFolder.reopen = staticmethod(open_remote_folder)
