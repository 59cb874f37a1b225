"""Text of others, as it may be shown in a terminal or on a page."""

_HEAD, _TAIL = 7000, 2000  # characters of a long message; what to do often stands at its end


def printable(text: str, keep: str = "") -> str:
    """``text`` with what would control a terminal escaped, as ``\\x1b``; characters of ``keep`` stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def is_name_of_file(text: str) -> bool:
    """Whether a file or a folder of this name can be made in a folder, and can be shown."""
    return (
        text.isprintable()
        and 0 < len(text.encode("utf-8")) <= 255
        and text not in (".", "..")
        and not set(text) & set("/\\")
    )


def shortened(text: str) -> str:
    """``text``, or its beginning and its end if it is longer than any message should be."""
    if len(text) <= _HEAD + _TAIL:
        return text
    left_out = len(text) - _HEAD - _TAIL
    return f"{text[:_HEAD]} [... {left_out:,} characters were cut here ...] {text[-_TAIL:]}"


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
