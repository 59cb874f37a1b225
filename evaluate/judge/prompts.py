"""The prompts: Jinja templates in files, the shipped ones or those of a folder of the user's."""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ...common.errors import UsageError
from ...common.validation import suggest
from ...store.untrusted_files import read_text
from .chat import Message
from .window_text import Example

NAMES = (
    "explain.system.j2", "explain.user.j2", "detection.system.j2", "detection.user.j2", "fuzzing.system.j2",
    "fuzzing.user.j2", "repair_explanation.j2", "repair_score.j2",
)  # fmt: skip
_MAX_BYTES = 1 << 20
_MAX_WORDS = 300  # of Jinja, which repeats names however long
_SAMPLE = Example(text="a text", highlighted="a <<text>>", tokens=[("text", 10)])


class Prompts:
    """Templates by name, from ``folder`` where it has one, else those that are shipped.

    Attributes:
        sha256: of all templates, so that results say which prompts they are of.

    Raises:
        UsageError: ``folder`` holds none, one of an unknown name, or one that is not valid.
    """

    def __init__(self, folder: Path | None = None) -> None:
        shipped = files(__package__).joinpath("templates")
        sources = {name: shipped.joinpath(name).read_text("utf-8") for name in NAMES}
        sources |= {} if folder is None else _read_folder(folder)
        self.sha256 = hashlib.sha256(repr(sorted(sources.items())).encode("utf-8")).hexdigest()
        # Templates may come from others: the sandbox lets them reach nothing but their variables.
        self._jinja = ImmutableSandboxedEnvironment(
            loader=DictLoader(sources), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._jinja.filters["one_line"] = _one_line
        for name in NAMES:
            self._render(name, examples=[_SAMPLE], explanation="a sentence")

    def explain(self, examples: Sequence[Example]) -> list[Message]:
        """The messages that ask for an explanation of what examples share."""
        return self._messages("explain", examples, "")

    def detection(self, explanation: str, examples: Sequence[Example]) -> list[Message]:
        """The messages that ask which examples an explanation is true of."""
        return self._messages("detection", examples, explanation)

    def fuzzing(self, explanation: str, examples: Sequence[Example]) -> list[Message]:
        """The messages that ask in which examples the highlights are those of an explanation."""
        return self._messages("fuzzing", examples, explanation)

    def repair_explanation(self) -> str:
        """The message after an answer without an explanation."""
        return self._render("repair_explanation.j2", examples=[], explanation="")

    def repair_score(self, examples: Sequence[Example]) -> str:
        """The message after an answer without a list of marks."""
        return self._render("repair_score.j2", examples=examples, explanation="")

    def _messages(self, name: str, examples: Sequence[Example], explanation: str) -> list[Message]:
        return [
            {
                "role": role,
                "content": self._render(f"{name}.{role}.j2", examples=examples, explanation=explanation),
            }
            for role in ("system", "user")
        ]

    def _render(self, name: str, **values: object) -> str:
        try:
            text = self._jinja.get_template(name).render(values).strip()
            text.encode("utf-8")  # a request cannot hold half a character
            return text
        except (  # ValueError is a UnicodeEncodeError too; the last three are of what is nested too deeply
            TemplateError, ArithmeticError, TypeError, ValueError, AttributeError, LookupError,
            RecursionError, SyntaxError, MemoryError,
        ) as error:  # fmt: skip
            raise UsageError(
                f"the prompt {name} cannot be used: {str(error)[:_MAX_WORDS]}. It may use 'examples' (each "
                "with text, highlighted and tokens), 'explanation' and the filter one_line"
            ) from None


def _read_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise UsageError(f"prompts={folder} is no folder; it should hold {', '.join(NAMES)}, or some of them")
    found = {}
    for path in sorted(folder.glob("*.j2")):
        if path.name not in NAMES:
            raise UsageError(
                f"{path} is no prompt that is used{suggest(path.name, NAMES)}; known names: "
                f"{', '.join(NAMES)}"
            )
        found[path.name] = read_text(path, _MAX_BYTES)
    if not found:
        raise UsageError(f"prompts={folder} holds no template; expected {', '.join(NAMES)}, or some of them")
    return found


def _one_line(text: str) -> str:
    """``text`` in one line: line breaks and tabs as they are written in code."""
    return text.replace("\r", "\\r").replace("\n", "\\n").replace("\t", "\\t")
