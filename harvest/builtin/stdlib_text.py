"""Text that needs no download: the running Python's own standard library, source and documentation.

The documents are every `*.py` file of the standard library without its tests, and every topic of the language
reference that `help()` shows (`pydoc_data/topics`). For one Python version they are always the same.
"""

import hashlib
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

_SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "__pycache__",
    "idlelib",
    "idle_test",
    "turtledemo",
}
# An administrator may put the first two here; the topics are yielded one by one instead.
_SKIPPED_FILES = {"sitecustomize.py", "usercustomize.py", "pydoc_data/topics.py"}
# Written when this Python was built, so they differ between machines.
_GENERATED_PREFIXES = ("config-", "_sysconfigdata")
_TOPIC_PREFIX = "pydoc_data/topics/"
_HELDOUT_PERCENT = 5


def stdlib_documents() -> Iterator[tuple[str, str]]:
    """Yield (posix name relative to the standard library, text) of every document that is not empty.

    Ordered by the sha256 of the name, not alphabetically: a reader that stops early has then read a uniform
    sample of the library, and not only its modules from A to C. Line ends are `\\n`; files that cannot be
    decoded are left out.
    Raises FileNotFoundError when this Python has no standard library source on disk (frozen or zipped).
    """
    root = Path(sysconfig.get_path("stdlib"))
    topics = _topics()
    names = [*_source_names(root), *topics]
    if len(names) == len(topics):
        raise FileNotFoundError(f"no Python source files under the standard library folder {root}")
    for name in sorted(names, key=_name_hash):
        text = topics[name] if name in topics else _read_source(root / name)
        if text:
            yield name, text


def stdlib_fingerprint() -> str:
    """Sha256 (hex) over the names and contents of `stdlib_documents`, in their order."""
    digest = hashlib.sha256()
    for name, text in stdlib_documents():
        for part in (name.encode(), text.encode()):
            # The length goes in front, so that no two lists of documents give the same bytes.
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()


def is_heldout(name: str) -> bool:
    """True for about 5 % of the names: documents that the demo model has not been trained on."""
    # Salted, so that being held out says nothing about a document's place in the order.
    return int.from_bytes(_name_hash("heldout:" + name)[:8], "big") % 100 < _HELDOUT_PERCENT


def _source_names(root: Path) -> list[str]:
    names = (path.relative_to(root) for path in root.rglob("*.py"))
    return [name.as_posix() for name in names if not _is_skipped(name)]


def _is_skipped(name: Path) -> bool:
    if _SKIPPED_FOLDERS.intersection(name.parts[:-1]) or name.as_posix() in _SKIPPED_FILES:
        return True
    return any(part.startswith(_GENERATED_PREFIXES) for part in name.parts)


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics
    except ModuleNotFoundError:  # some distributions ship the library without its documentation
        return {}
    return {_TOPIC_PREFIX + key: text for key, text in topics.items()}


def _read_source(path: Path) -> str:
    """The file's text, by its own coding line; empty when it cannot be decoded."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError):  # an unknown coding line; bytes that contradict it
        return ""


def _name_hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
