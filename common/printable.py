"""Text of others, as it may be shown in a terminal or on a page."""


def printable(text: str, keep: str = "") -> str:
    """``text`` with what would control a terminal escaped, as ``\\x1b``; characters of ``keep`` stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escape(c) for c in text)


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
