"""Zip archives as torch and numpy write them: members that are stored, not compressed.

Such a member takes as many bytes in memory as in the file, so that no small file can fill the memory.
"""

import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...common.errors import UsageError
from ...store.untrusted_files import open_file

MAX_MEMBERS = 10_000
_DAMAGES = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    EOFError,
    struct.error,
    OverflowError,
)


class StoredZip:
    """The members of one archive. Use :func:`open_stored_zip`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, num_bytes: int) -> None:
        self.path = path
        self._archive = archive
        self._num_bytes = num_bytes  # of the whole file
        self._members = {info.filename: info for info in archive.infolist()}
        if len(self._members) != len(archive.infolist()) or len(self._members) > MAX_MEMBERS:
            raise damaged(path, "two members have one name, or there are more than any such file has")

    def __contains__(self, name: str) -> bool:
        return name in self._members

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def size(self, name: str) -> int:
        """The bytes of a member.

        Raises:
            UsageError: there is none of this name, it is compressed, or larger than the file.
        """
        if name not in self._members:
            raise damaged(self.path, f"it lacks the member {name[:80]!r}")
        info = self._members[name]
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise UsageError(
                f"{self.path}: member {name[:80]!r} is compressed, which is not read: write the file again "
                "without compression (torch.save, np.savez)"
            )
        if info.file_size > self._num_bytes:  # before as much memory is taken
            raise damaged(self.path, f"member {name[:80]!r} would be larger than the file")
        return info.file_size

    def head(self, name: str, most_bytes: int) -> bytes:
        """The first bytes of a member; errors as :meth:`read`."""
        self.size(name)
        try:
            with self._archive.open(name) as member:
                return member.read(most_bytes)
        except (*_DAMAGES, OSError) as error:
            raise damaged(self.path, f"member {name[:80]!r}: {error!s:.200}") from None

    def read(self, name: str) -> bytearray:
        """The content of a member, compared with its checksum; errors as :meth:`size`.

        Raises:
            UsageError: the member is damaged.
        """
        content = bytearray(self.size(name))
        try:
            with self._archive.open(name) as member:
                view = memoryview(content)
                while len(view) and (count := member.readinto(view)):  # type: ignore[attr-defined]
                    view = view[count:]
                if len(view) or member.read(1):  # the last read compares the checksum
                    raise damaged(self.path, f"member {name[:80]!r} ends early")
        except (*_DAMAGES, OSError) as error:
            raise damaged(self.path, f"member {name[:80]!r}: {error!s:.200}") from None
        return content


@contextmanager
def open_stored_zip(path: Path) -> Iterator[StoredZip]:
    """Open an archive for reading.

    Raises:
        FileNotFoundError: there is no such file.
        UsageError: it is not a regular file, or no whole zip archive.
    """
    with open_file(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (*_DAMAGES, OSError) as error:
            raise damaged(path, f"it is no zip archive ({error!s:.200})") from None
        with archive:
            yield StoredZip(path, archive, os.fstat(file.fileno()).st_size)


def damaged(path: Path, reason: str) -> UsageError:
    return UsageError(f"{path} cannot be read: {reason}")
