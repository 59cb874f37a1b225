"""Which text a harvest reads (plain text, chats, token ids, or several data sets mixed by weight), and how it
becomes sequences."""

import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from ...common.counts import Count
from ...common.frozen import FrozenModel

MessageRole = Literal["system", "developer", "user", "assistant", "tool", "function"]
MESSAGE_ROLES: tuple[MessageRole, ...] = get_args(MessageRole)


class ChatConfig(FrozenModel):
    """Conversations, written out by the chat template of the model's tokenizer.

    The model reads every conversation whole; ``roles`` and ``include_template`` say which tokens become rows.
    """

    column: str = Field(default="messages", min_length=1, description="a list of messages per conversation")
    roles: Literal["all"] | Annotated[tuple[MessageRole, ...], Field(min_length=1)] = Field(
        default="all", description="whose messages become rows, as [assistant]; the model reads all of them"
    )
    include_template: bool = Field(
        default=False, description="also make rows of the markup that the template adds around messages"
    )
    role_key: str = Field(default="role", min_length=1, description="where a message says whose it is")
    content_key: str = Field(default="content", min_length=1, description="where a message has its text")
    rename_roles: dict[str, MessageRole] = Field(
        default_factory=dict,
        description="roles that the data call otherwise, as {human: user, gpt: assistant}",
    )
    template: str | None = Field(
        default=None, min_length=1, description="file with a Jinja chat template, instead of the tokenizer's"
    )
    template_arguments: dict[str, bool | int | str] = Field(
        default_factory=dict, description="settings of the template's own, as {enable_thinking: false}"
    )
    date: datetime.date = Field(
        default=datetime.date(2024, 7, 26),
        description="the date that templates write as today's, so that the cache is the same every day",
    )

    @field_validator("roles", mode="before")
    @classmethod
    def _one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and value != "all" else value

    @field_validator("roles")
    @classmethod
    def _in_one_order(cls, value: str | tuple[MessageRole, ...]) -> str | tuple[MessageRole, ...]:
        return value if isinstance(value, str) else tuple(role for role in MESSAGE_ROLES if role in value)


class PretokenizedConfig(FrozenModel):
    """Token ids instead of text."""

    column: str = Field(default="input_ids", min_length=1, description="a list of token ids per document")
    tokenizer: str = Field(
        pattern=r"^(unknown|[0-9a-f]{64})$",
        description="sha256 of the tokenizer that made the ids, as 'saecache cache info' shows it; "
        "'unknown' if nobody knows",
    )


class _Records(FrozenModel):
    """What a record of a data set holds in which column."""

    column: str = Field(default="text", min_length=1, description="the column of plain text")
    chat: ChatConfig | None = Field(default=None, description="the records are conversations")
    pretokenized: PretokenizedConfig | None = Field(default=None, description="the records are token ids")

    @model_validator(mode="after")
    def _one_kind_of_content(self) -> "_Records":
        if self.chat is not None and self.pretokenized is not None:
            raise ValueError("chat and pretokenized exclude each other: give one of them")
        kind = "chat" if self.chat is not None else "pretokenized" if self.pretokenized is not None else None
        if kind is not None and self.column != "text":
            raise ValueError(f"column is that of plain text: set {kind}.column instead")
        return self


class HubText(_Records):
    """A dataset of the Hugging Face hub, streamed."""

    kind: Literal["hub"] = "hub"
    dataset: str = Field(min_length=1, description="hub name (org/dataset)")
    subset: str | None = Field(default=None, description="the dataset's configuration, when it has several")
    split: str = Field(default="train", min_length=1)
    revision: str | None = Field(
        default=None,
        description="branch, tag or commit; None is the default branch, pinned by the first run",
    )


class FilesText(_Records):
    """Local files, in the order of their paths."""

    kind: Literal["files"] = "files"
    paths: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="files, folders (searched through) or globs ('data/**/*.jsonl')"
    )
    format: Literal["auto", "text", "jsonl", "parquet"] = Field(
        default="auto", description="'auto' goes by the extension; a text file is one document"
    )

    @field_validator("paths", mode="before")
    @classmethod
    def _one_path_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class BuiltinText(FrozenModel):
    """Text that needs no download."""

    kind: Literal["builtin"] = "builtin"
    name: Literal["stdlib"] = Field(default="stdlib", description="the running Python's own library")


# A new kind of text is one class above, one name here, and what opens it in ``sources/opening.py``.
DatasetText = Annotated[HubText | FilesText | BuiltinText, Field(discriminator="kind")]


class MixturePart(FrozenModel):
    """One data set of a mixture."""

    weight: float = Field(
        gt=0,
        allow_inf_nan=False,
        description="share of the documents, or of the tokens, relative to the others",
    )
    text: DatasetText


class MixtureText(FrozenModel):
    """Several data sets, document by document in a random order that the seed fixes."""

    kind: Literal["mixture"] = "mixture"
    parts: Annotated[tuple[MixturePart, ...], Field(min_length=2, max_length=1000)]
    by: Literal["documents", "tokens"] = Field(
        default="documents",
        description="what the weights are shares of; for 'tokens' a part is drawn by weight / mean length of "
        "documents, as measured on its first ones",
    )
    when_one_ends: Literal["continue", "stop"] = Field(
        default="continue",
        description="when a part has no more documents: 'continue' with the others, or 'stop' there; no text "
        "is repeated",
    )


TextConfig = Annotated[DatasetText | MixtureText, Field(discriminator="kind")]


def datasets_of(config: TextConfig) -> list[DatasetText]:
    """The data sets of a text: one, or the parts of a mixture."""
    return [part.text for part in config.parts] if isinstance(config, MixtureText) else [config]


def needs_no_special_tokens(config: TextConfig) -> bool:
    """Whether all documents bring their own BOS and ends: chats by their template, token ids as they are."""
    return all(
        isinstance(each, _Records) and (each.chat is not None or each.pretokenized is not None)
        for each in datasets_of(config)
    )


class TokensConfig(FrozenModel):
    """How documents become sequences of ``context`` positions."""

    context: Count = Field(ge=1, le=1 << 20, description="positions of a sequence")
    packing: Literal["packed", "per_document"] = Field(
        default="packed",
        description="'packed' joins documents and cuts the stream; 'per_document' gives each document one "
        "sequence, cut or padded",
    )
    bos: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="begin every sequence with BOS; 'auto': if the tokenizer has one, and not where all text "
        "is chats or token ids, which have their own",
    )
    separator: str = Field(
        default="auto",
        min_length=1,
        description="after each packed document: 'eos', 'bos', 'none' or the text of one token; "
        "'auto': 'eos' when packed, 'none' where all text is chats or token ids",
    )
    min_document_tokens: Count = Field(default=1, ge=1, description="shorter documents are left out")
    max_document_tokens: Count | None = Field(
        default=None, ge=1, description="longer documents are cut to this many tokens; None: no limit"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "TokensConfig":
        if self.packing == "per_document" and self.separator not in ("auto", "none"):
            raise ValueError("separator has no effect with packing=per_document: leave it out")
        if self.bos == "always" and self.context < 2:
            raise ValueError("context must be at least 2 when every sequence begins with BOS")
        if self.max_document_tokens is not None and self.max_document_tokens < self.min_document_tokens:
            raise ValueError("max_document_tokens must not be below min_document_tokens")
        return self
