"""What an ``hf://`` URL names: a repository of the Hub, a revision of it, and a path in it."""

import os
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, unquote

from .....common.errors import UsageError

DEFAULT_ENDPOINT = "https://huggingface.co"
EXPECTED = "expected hf://datasets/ORG/NAME[@REVISION][/path], or hf://ORG/NAME for a model"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,249}")


@dataclass(frozen=True)
class HubRepository:
    """A repository at a revision: a branch, a tag, a commit or ``refs/pr/N``."""

    kind: Literal["dataset", "model"]
    name: str
    revision: str = "main"

    @property
    def api(self) -> str:
        """The path of its part of the API."""
        return f"/api/{self.kind}s/{self.name}"

    @property
    def files(self) -> str:
        """The path below which its files are."""
        return f"/datasets/{self.name}" if self.kind == "dataset" else f"/{self.name}"

    @property
    def quoted_revision(self) -> str:
        return quote(self.revision, safe="")

    def __str__(self) -> str:
        """As in a URL, after ``hf://``."""
        shown = f"@{self.quoted_revision}" if "/" in self.revision else f"@{self.revision}"
        folder = "datasets/" if self.kind == "dataset" else ""
        return f"{folder}{self.name}{'' if self.revision == 'main' else shown}"


def parse_hub_path(path: str) -> tuple[HubRepository, str]:
    """(repository, path in it) of what follows ``hf://``.

    Raises:
        UsageError: it names no dataset or model, or something of the Hub that is neither.
    """
    first, *rest = [part for part in path.split("/") if part] or [""]
    if first == "buckets":
        raise UsageError(
            "buckets of the Hub are reached by their S3 protocol: s3://NAME/path, with AWS_ENDPOINT_URL and "
            "keys as the Hub shows them (docs/sharing.md)"
        )
    if first == "spaces":
        raise UsageError(f"hf://{path} names a space; {EXPECTED}")
    parts = rest if first in ("datasets", "models") else [first, *rest]
    if len(parts) < 2:
        raise UsageError(f"hf://{path} names no repository; {EXPECTED}")
    owner, name, *below = parts
    name, at, revision = name.partition("@")
    if at and revision == "refs" and len(below) >= 2:
        revision, below = "/".join([revision, *below[:2]]), below[2:]
    revision = unquote(revision) if at else "main"
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(name)):
        raise UsageError(f"hf://{path} names no repository; {EXPECTED}")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise UsageError(f"hf://{path}: {revision!r} cannot be a revision; {EXPECTED}")
    kind: Literal["dataset", "model"] = "dataset" if first == "datasets" else "model"
    return HubRepository(kind, f"{owner}/{name}", revision), "/".join(below)


def hub_endpoint() -> str:
    """The address of the Hub: ``HF_ENDPOINT``, or the public one; without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def hub_token() -> str | None:
    """The user's token, as huggingface_hub finds it: ``HF_TOKEN``, or what 'hf auth login' stored.

    Raises:
        UsageError: the user wants no requests to the Hub.
    """
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise UsageError("HF_HUB_OFFLINE is set, so the Hub is not asked: unset it, or use a local copy")
    from huggingface_hub import get_token

    return get_token()
