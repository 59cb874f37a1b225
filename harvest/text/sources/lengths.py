"""How many tokens a document of a text has, on average."""

from collections.abc import Iterator
from itertools import islice

from ....common.errors import UsageError
from .columns import ModelSide
from .source import Document, TextSource, num_characters

_MEASURED_DOCUMENTS = 1000
_MEASURED_CHARACTERS = 10_000_000  # of long documents fewer are measured


def mean_length(source: TextSource, model: ModelSide) -> float:
    """The mean number of positions that each of the first 1,000 documents fills, those left out included.

    Raises:
        UsageError: none of them has a token.
    """
    from ..tokenizing import tokenized

    rule, lengths = model.rule, []
    for document in tokenized(_first_documents(source), model.tokenizer):
        length = len(document.ids)
        if rule is not None:
            length = min(length, rule.max_document_tokens or length)
            length = 0 if len(document.ids) < rule.min_document_tokens else length
            if rule.packing == "per_document":
                length = min(length, rule.text_positions)
            elif length and rule.separator_id is not None:
                length += 1
        lengths.append(length)
    if not any(lengths):
        raise UsageError(f"{source}: none of the first {len(lengths)} documents has a token to give")
    return sum(lengths) / len(lengths)


def _first_documents(source: TextSource) -> Iterator[Document]:
    characters = 0
    for document in islice(source.documents(), _MEASURED_DOCUMENTS):
        yield document
        characters += num_characters(document.content)
        if characters > _MEASURED_CHARACTERS:
            return
