"""What a judge will cost, before it is asked: calls, tokens and, where prices are given, money."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import UsageError
from ...common.lookups import is_folder
from ...store.untrusted_files import read_text
from ...store.untrusted_model import files_explained
from .chat import Message
from .config import InterpretConfig, Price

CountTokens = Callable[[str], int]

BYTES_PER_TOKEN = 4
EXPLANATION_TOKENS = 60  # expected of an explanation, a short sentence and what introduces it
_MESSAGE_TOKENS = 4  # that a chat template adds to each message
_MAX_TOKENIZER_BYTES = 64 << 20
TYPICAL_EXPLANATION = (
    "words about " + "a thing of one kind, " * 10
)  # of as many tokens, until there is a real one


@dataclass(frozen=True)
class Estimate:
    """Calls that are still to be made, and the tokens expected in them.

    Attributes:
        answered: calls whose answers are stored already.
        counted_by: how tokens are counted, in words.
    """

    explanations: int = 0
    scores: int = 0
    embeddings: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted_by: str = ""

    @property
    def calls(self) -> int:
        return self.explanations + self.scores + self.embeddings

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def cost(self, price: Price) -> float:
        """In the currency of ``price``."""
        return (
            self.prompt_tokens * price.prompt_per_million
            + self.completion_tokens * price.completion_per_million
        ) / 1e6

    def describe(self, price: Price | None) -> str:
        """The estimate in words."""
        text = (
            f"{self.calls:,} calls ({self.explanations:,} explanations, {self.scores:,} scores"
            + (f", {self.embeddings:,} embeddings" if self.embeddings else "")
            + f"), about {self.prompt_tokens:,} tokens of prompts and {self.completion_tokens:,} of answers "
            f"({self.counted_by})"
        )
        if self.answered:
            text += f"; {self.answered:,} more are answered already"
        if price is not None:
            text += f"; about {self.cost(price):,.2f} at the given prices"
        return text

    def check(self, config: InterpretConfig) -> None:
        """Refuse to begin what is larger than the user allows.

        Raises:
            UsageError: too many calls or tokens.
        """
        for name, needed, most in (
            ("max_calls", self.calls, config.max_calls),
            ("max_tokens", self.tokens, config.max_tokens),
        ):
            if needed > most:
                raise UsageError(
                    f"the judge would need {self.describe(config.price)}. That is more than {name}={most:,}: "
                    f"allow it with --set {name}={needed}, or judge fewer latents (num_latents)"
                )


def load_counter(place: str | None) -> tuple[CountTokens, str]:
    """A function that counts the tokens of a text, and how it counts, in words.

    Args:
        place: a tokenizer.json or a folder with one; None counts bytes.

    Raises:
        UsageError: there is no tokenizer, or it cannot be read.
    """
    if place is None:
        return (
            lambda text: -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN),
            f"counted as one for {BYTES_PER_TOKEN} bytes",
        )
    path = Path(place)
    path = path / "tokenizer.json" if is_folder(path) else path
    from tokenizers import Tokenizer

    try:
        content = read_text(path, _MAX_TOKENIZER_BYTES)
    except FileNotFoundError:
        raise UsageError(f"tokenizer={place}: there is no file {path}") from None
    with files_explained(f"tokenizer={place} is no tokenizer.json"):
        tokenizer = Tokenizer.from_str(content)

    def count(text: str) -> int:
        with files_explained(f"tokenizer={place} cannot read {text[:80]!r}", "; name another one, or none"):
            return len(tokenizer.encode(text, add_special_tokens=False).ids)

    return count, f"counted by {place}"


def count_messages(messages: Sequence[Message], count: CountTokens) -> int:
    """The tokens of a chat prompt."""
    return sum(count(message["content"]) + _MESSAGE_TOKENS for message in messages)


def score_answer_tokens(num_examples: int) -> int:
    """The tokens expected of a list of so many marks."""
    return 2 * num_examples + 2
