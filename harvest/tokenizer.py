"""The model's tokenizer: text -> ids in batches, the special tokens by their role, and its identity."""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..common.errors import SaecacheError, UsageError
from ..store.untrusted_model import files_explained
from .chat import ChatTemplate
from .config import TokensConfig
from .model_files import ModelFiles, check_small_files, locate_model_of
from .packing import PackingRule, Role, TokenDocument
from .sources.source import Content, Conversation, Document, num_characters

if TYPE_CHECKING:
    from ..store import ActivationCache

# The first batches are small: a short harvest needs no more, a long one does not wait for its first tokens.
_FIRST_BATCH_CHARACTERS, _BATCH_CHARACTERS = 1 << 14, 1 << 18
_BATCH_DOCUMENTS = 256
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


def encode(tokenizer: Any, texts: list[str]) -> list[NDArray[np.int32]]:
    """Token ids of each text, without special tokens of the tokenizer's own. int32 [n] each."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(ids, dtype=np.int32) for ids in encoded]


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


def tokenized(documents: Iterator[Document], tokenizer: Any) -> Iterator[TokenDocument]:
    """Documents with their token ids, encoded many at a time, in order.

    An error of the source comes after every document before it.
    """
    group: list[Document] = []
    failure: SaecacheError | None = None
    characters, enough = 0, _FIRST_BATCH_CHARACTERS
    while failure is None:
        try:
            document = next(documents, None)
        except SaecacheError as error:
            document, failure = None, error
        if document is not None:
            group.append(document)
            characters += num_characters(document.content)
        if document is None or characters >= enough or len(group) >= _BATCH_DOCUMENTS:
            yield from _encode_group(group, tokenizer)
            group, characters, enough = [], 0, min(2 * enough, _BATCH_CHARACTERS)
        if document is None:
            break
    if failure is not None:
        raise failure


def _encode_group(group: list[Document], tokenizer: Any) -> Iterator[TokenDocument]:
    """Consecutive documents of one kind are encoded together."""
    for kind, documents in groupby(group, lambda document: _kind_of(document.content)):
        part = list(documents)
        numbers = [number for number, _ in part]
        if kind is None:
            encoded = encode(tokenizer, [str(content) for _, content in part])
            yield from map(TokenDocument, numbers, encoded)
        elif isinstance(kind, ChatTemplate):
            chats = [(f"conversation {n}", c.messages) for n, c in part if isinstance(c, Conversation)]
            for number, (ids, roles) in zip(numbers, kind.encode(chats), strict=True):
                yield TokenDocument(number, ids, roles)
        else:
            for number, content in part:
                assert isinstance(content, np.ndarray)
                yield _with_roles(number, content, tokenizer)


def _kind_of(content: Content) -> ChatTemplate | type | None:
    """What ``content`` is: None is plain text; of a chat its template; else token ids."""
    if isinstance(content, Conversation):
        return content.template
    return None if isinstance(content, str) else np.ndarray


def _with_roles(number: int, ids: NDArray[np.int32], tokenizer: Any) -> TokenDocument:
    """Ids as they are, with the roles of the tokenizer's special tokens; padding at the end is dropped."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    if pad is not None and pad not in (bos, eos):
        ids = ids[: int(np.flatnonzero(ids != pad)[-1]) + 1] if (ids != pad).any() else ids[:0]
    roles = np.full(len(ids), Role.TEXT, dtype=np.uint8)
    if bos is not None:
        roles[ids == bos] = Role.BOS
    if eos is not None:
        roles[ids == eos] = Role.SEPARATOR
    if len(ids) and ids[0] == bos:
        roles[0] = Role.BOS
    return TokenDocument(number, ids, roles)


def packing_rule(config: TokensConfig, tokenizer: Any, *, as_it_is: bool = False) -> PackingRule:
    """``config`` with every 'auto' and token name resolved for ``tokenizer``.

    Args:
        config: how documents become sequences.
        tokenizer: of the model.
        as_it_is: the documents bring their own BOS and ends, so that 'auto' adds none.

    Raises:
        UsageError: a token that the tokenizer does not have.
    """
    bos_id = tokenizer.bos_token_id
    if config.bos == "always" and bos_id is None:
        raise UsageError("tokens.bos=always, but this model's tokenizer has no BOS token; use auto or never")
    if config.bos == "never" or (config.bos == "auto" and as_it_is):
        bos_id = None
    if bos_id is not None and config.context < 2:
        raise UsageError(
            "tokens.context must be at least 2 when every sequence begins with BOS; or set tokens.bos=never"
        )
    return PackingRule(
        context=config.context,
        packing=config.packing,
        bos_id=bos_id,
        separator_id=_separator_id(config, tokenizer, as_it_is),
        min_document_tokens=config.min_document_tokens,
        max_document_tokens=config.max_document_tokens,
    )


def _separator_id(config: TokensConfig, tokenizer: Any, as_it_is: bool) -> int | None:
    if (
        config.separator == "none"
        or (config.separator == "auto" and as_it_is)
        or config.packing == "per_document"
    ):
        return None
    if config.separator in ("auto", "eos", "bos"):
        role = "bos" if config.separator == "bos" else "eos"
        token_id = tokenizer.bos_token_id if role == "bos" else tokenizer.eos_token_id
        if token_id is None:
            raise UsageError(
                f"tokens.separator={config.separator}, but this model's tokenizer has no {role.upper()} "
                "token; give the text of a token of its vocabulary, or 'none'"
            )
        return int(token_id)
    token_id = tokenizer.get_vocab().get(config.separator)
    if token_id is None:
        raise UsageError(
            f"tokens.separator={config.separator!r} is not a token of this model's vocabulary; "
            "expected 'auto', 'eos', 'bos', 'none' or the text of one token"
        )
    return int(token_id)
