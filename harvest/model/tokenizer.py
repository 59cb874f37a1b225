"""The model's tokenizer: its files, its identity, and what its tokens look like."""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...common.errors import UsageError
from ...store.untrusted_model import files_explained
from .files import ModelFiles, check_small_files, locate_model_of

if TYPE_CHECKING:
    from ...store import ActivationCache

# What defines the ids, most specific first; the other files only say which tokens have which role.
_VOCABULARY_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("tokenizer.model",), ("vocab.txt",))


def load_tokenizer(files: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """The model's tokenizer, without truncation or padding of its own.

    Raises:
        UsageError: there is none.
    """
    from transformers import AutoTokenizer

    names = {name for group in _VOCABULARY_FILES for name in group} | {"tokenizer_config.json"}
    if files.gguf_file is None and not any((files.folder / name).is_file() for name in names):
        raise UsageError(
            f"{files.folder} has no tokenizer (expected tokenizer.json, or one of "
            f"{', '.join(sorted(names - {'tokenizer.json'}))}); save the one that belongs to the model "
            "there: AutoTokenizer.from_pretrained(<original model>).save_pretrained(<folder>)"
        )
    check_small_files(files)
    with files_explained(f"no usable tokenizer in {files.place}"):
        tokenizer = AutoTokenizer.from_pretrained(
            files.folder, trust_remote_code=trust_remote_code, **files.source
        )
        if not callable(tokenizer):
            raise ValueError(f"it is a {type(tokenizer).__name__}")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
    return tokenizer


def load_tokenizer_of(cache: "ActivationCache") -> Any:
    """The tokenizer of the model that a cache was harvested from; the weights are not needed.

    Raises:
        UsageError: the cache names no model, there is no tokenizer, or it is another one.
    """
    _, files = locate_model_of(cache)
    tokenizer = load_tokenizer(files)
    expected = cache.manifest.identity.get("tokenizer")
    wanted = expected.get("sha256") if isinstance(expected, Mapping) else None
    found = tokenizer_sha256(files, tokenizer)
    if wanted is not None and wanted != found:
        raise UsageError(
            f"the tokenizer in {files.place} is not that of {cache.path}: expected sha256 {wanted!s:.80}, "
            f"got {found}"
        )
    return tokenizer


def tokenizer_sha256(files: ModelFiles, tokenizer: Any) -> str:
    """sha256 of the files that define the vocabulary; of the vocabulary itself when there are none."""
    for names in _VOCABULARY_FILES if files.gguf_file is None else ():
        paths = [files.folder / name for name in names]
        if all(path.is_file() for path in paths):
            return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return hashlib.sha256(repr(vocabulary).encode("utf-8")).hexdigest()


def list_vocabulary(tokenizer: Any) -> list[tuple[int, str]]:
    """Every token: its id, and its text as it stands in the middle of a sentence, by id."""
    found = []
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        text = str(tokenizer.convert_tokens_to_string([token]))
        found.append((int(number), _with_space(token, text)))
    return found


def _with_space(token: str, text: str) -> str:
    """SentencePiece drops spaces that begin a text."""
    missing = (len(token) - len(token.lstrip("▁"))) - (len(text) - len(text.lstrip(" ")))
    return " " * missing + text


def show_token(tokenizer: Any, number: int) -> str:
    """The text of one token as it stands in the middle of a sentence.

    Bytes that are a part of a character are shown as ``\\xe2``, not all as the same replacement character.
    """
    text = str(tokenizer.decode([number]))
    token = str(tokenizer.convert_ids_to_tokens(number))
    if "\ufffd" not in text:
        return _with_space(token, text)
    if token.startswith("<0x"):  # of SentencePiece
        return f"\\x{token[3:-1].lower()}"
    try:
        content = bytes(_BYTE_OF[character] for character in token)
    except KeyError:
        return text
    return content.decode("utf-8", "backslashreplace")


def _bytes_by_character() -> dict[str, int]:
    """The byte for each character of a vocabulary of bytes, as GPT-2's: unseen bytes follow 255."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _bytes_by_character()
