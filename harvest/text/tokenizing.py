"""Documents -> token ids, many at a time, and what a tokenizer makes of the settings of sequences."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...common.errors import SaecacheError, UsageError
from .chat import ChatTemplate
from .config import TokensConfig
from .packing import PackingRule, Role, TokenDocument
from .sources.source import Content, Conversation, Document, num_characters

# The first batches are small: a short harvest needs no more, a long one does not wait for its first tokens.
_FIRST_BATCH_CHARACTERS, _BATCH_CHARACTERS = 1 << 14, 1 << 18
_BATCH_DOCUMENTS = 256


def encode(tokenizer: Any, texts: list[str]) -> list[NDArray[np.int32]]:
    """Token ids of each text, without special tokens of the tokenizer's own. int32 [n] each."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        encodings = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(ids, dtype=np.int32) for ids in encoded]


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
