"""Chats: which tokens are whose, which become rows, and what is refused before the model is loaded."""

import json
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from saecache.common.errors import UsageError
from saecache.common.validation import validate
from saecache.harvest import HarvestConfig, LanguageModel
from saecache.harvest.runner import run
from saecache.harvest.text.chat import ChatTemplate
from saecache.harvest.text.config import MESSAGE_ROLES, ChatConfig
from saecache.harvest.text.packing import EXCLUDED, MESSAGE_ROLE, Role
from saecache.store import ActivationCache, open_cache

from ..job.test_resume import digests, stopped_while_reading

MakeConfig = Callable[..., HarvestConfig]
CHATML = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)
TRIMMED = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    "[{{ m.content }}]{% endfor %}"
)
SHOUTING = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
CHATS = [
    [
        {"role": "user", "content": f"How many rows does shard {i} hold? \U0001f642"},
        {"role": "assistant", "content": f"It holds {i * 7} rows.\n\n  Each of them once. "},
        {"role": "user", "content": "Thanks" * (i % 3)},
        {"role": "assistant", "content": "A quick brown fox reads shards."},
    ]
    for i in range(40)
]


@pytest.fixture
def chat_model(model_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A small model whose tokenizer has a chat template."""
    from transformers import AutoTokenizer

    folder = tmp_path / "chat-model"
    folder.symlink_to(model_folder("llama"), target_is_directory=True)
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(copy)
    return copy


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    return write_chats(tmp_path / "chats.jsonl", CHATS)


def write_chats(path: Path, conversations: list[Any], column: str = "messages") -> Path:
    path.write_text("".join(json.dumps({column: each}) + "\n" for each in conversations), "utf-8")
    return path


@pytest.fixture
def make_chat(make_config: MakeConfig, chat_model: Path, chats: Path) -> Callable[..., HarvestConfig]:
    def make(chat: dict[str, Any], paths: Path = chats, **settings: Any) -> HarvestConfig:
        text = {"kind": "files", "paths": str(paths), "chat": chat}
        return make_config(
            chat_model, text=text, **{"tokens": {"context": 64}, "num_tokens": 2000, **settings}
        )

    return make


def tokenizer_with(folder: Path, template: str | None) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer


def texts_by_role(template: ChatTemplate, tokenizer: Any, messages: list[dict[str, Any]]) -> dict[int, str]:
    """The text of all tokens of each role, joined."""
    ((ids, roles),) = template.encode([("here", messages)])
    return {int(role): tokenizer.decode(ids[roles == role]) for role in np.unique(roles)}


@pytest.mark.parametrize("messages", [CHATS[1], CHATS[0]])
def test_tokens_of_contents_are_exact(chat_model: Path, messages: list[dict[str, Any]]) -> None:
    tokenizer = tokenizer_with(chat_model, CHATML)
    template = ChatTemplate(tokenizer, ChatConfig(roles=("assistant",)))
    found = texts_by_role(template, tokenizer, messages)
    user, assistant = (MESSAGE_ROLE + MESSAGE_ROLES.index(role) for role in ("user", "assistant"))
    said = {
        role: "".join(m["content"] for m in messages if m["role"] == role) for role in ("user", "assistant")
    }
    assert found[user + EXCLUDED] == said["user"]
    assert found[assistant] == said["assistant"]
    markup = found[Role.TEMPLATE + EXCLUDED].replace("<s>", "")
    assert markup == "".join(f"{m['role']}\n\n" for m in messages)
    ids = template.encode([("here", messages)])[0][0]
    assert ids.tolist() == tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]


def test_one_role_is_a_list_of_one() -> None:
    assert ChatConfig.model_validate({"roles": "assistant"}).roles == ("assistant",)
    assert ChatConfig.model_validate({"roles": "all"}).roles == "all"
    with pytest.raises(UsageError, match=r"- roles: expected a list or 'all' \(got 3\)$"):
        validate(ChatConfig, {"roles": 3}, "it")


def test_markup_and_all_roles_can_be_kept(chat_model: Path) -> None:
    tokenizer = tokenizer_with(chat_model, CHATML)
    template = ChatTemplate(tokenizer, ChatConfig(include_template=True))
    ((_, roles),) = template.encode([("here", CHATS[1])])
    assert roles.max() < EXCLUDED
    assert Role.TEMPLATE in roles


def test_contents_without_blanks_around_them(chat_model: Path) -> None:
    """'assistant: It' may be one token of markup and word; the word is the assistant's."""
    tokenizer = tokenizer_with(chat_model, TRIMMED)
    template = ChatTemplate(tokenizer, ChatConfig(roles=("assistant",)))
    text, spans = template.render(CHATS[1], "here")
    assert [text[a:b] for a, b, _ in spans] == [m["content"].strip() for m in CHATS[1]]
    found = texts_by_role(template, tokenizer, CHATS[1])
    kept = found[MESSAGE_ROLE + MESSAGE_ROLES.index("assistant")]
    assert kept.replace(" ", "").replace("\n", "").startswith("Itholds7rows.Eachofthemonce.A")


def test_same_roles_are_not_the_same_text(chat_model: Path) -> None:
    """The places of contents are remembered by roles, so they must not remember anything else."""
    template = ChatTemplate(tokenizer_with(chat_model, CHATML), ChatConfig())
    for messages in (CHATS[1], CHATS[2], [], [*CHATS[4][:1], {"role": "assistant", "content": ""}]):
        text, spans = template.render(messages, "here")
        assert [text[a:b] for a, b, _ in spans] == [m["content"] for m in messages if m["content"]]


def test_date_is_fixed(chat_model: Path) -> None:
    dated = "{%- if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML
    tokenizer = tokenizer_with(chat_model, dated)
    assert ChatTemplate(tokenizer, ChatConfig()).render(CHATS[1], "")[0].startswith("26 Jul 2024<s>")
    other = ChatTemplate(tokenizer, ChatConfig(date=date(2020, 2, 3)))
    assert other.render(CHATS[1], "")[0].startswith("03 Feb 2020<s>")
    with pytest.raises(UsageError, match="current date in a way that cannot be fixed"):
        ChatTemplate(tokenizer_with(chat_model, "{{ strftime_now(messages[0].role) }}"), ChatConfig())


@pytest.mark.parametrize("packing", ["packed", "per_document"])
def test_only_the_chosen_roles_are_rows(make_chat: MakeConfig, tmp_path: Path, packing: str) -> None:
    config = make_chat({"roles": ["assistant"]}, tokens={"context": 64, "packing": packing})
    result = run(config, tmp_path / "cache")
    cache, counts = open_cache(result.path), result.manifest.counts
    assert counts["excluded_template"] == counts["tokens_template"] > 0
    assert counts["excluded_user"] == counts["tokens_user"] > 0
    assert counts["excluded_assistant"] == 0
    left_out = sum(count for name, count in counts.items() if name.startswith("excluded_"))
    assert num_rows(cache) == counts["tokens"] - left_out == counts["tokens_assistant"]
    assert counts["excluded_bos"] == counts["documents"]
    ids = cache.tokens[:].reshape(-1)[row_places(cache)]
    words = tokenizer_with(Path(config.model.name), None).decode(ids[:40])
    assert words.startswith("It holds 0 rows.\n\n  Each")


def num_rows(cache: ActivationCache) -> int:
    return len(cache) + cache.num_rows("heldout")


def row_places(cache: ActivationCache) -> np.ndarray[Any, Any]:
    return np.sort(np.concatenate([cache.token_index(split)[:] for split in ("train", "heldout")]))


def test_the_model_reads_the_whole_conversation(make_chat: MakeConfig, tmp_path: Path) -> None:
    """Rows of the assistant are those of the same positions when everything is kept."""
    some = open_cache(run(make_chat({"roles": ["assistant"]}), tmp_path / "some").path)
    everything = open_cache(run(make_chat({"include_template": True}), tmp_path / "all").path)
    assert (some.tokens[:] == everything.tokens[:]).all()
    assert some.fingerprint != everything.fingerprint
    assert num_rows(everything) > num_rows(some)
    few = some.token_index("train")[:50]
    place = {int(token): row for row, token in enumerate(everything.token_index("train")[:])}
    others = [place[int(token)] for token in few]
    hook = "resid_post.1"
    np.testing.assert_array_equal(some.rows(hook, np.arange(50)), everything.rows(hook, others))


def test_an_interrupted_chat_harvest_goes_on(make_chat: MakeConfig, tmp_path: Path) -> None:
    config = make_chat({"roles": ["assistant"]}, commit_seconds=0)
    whole = run(config, tmp_path / "whole")
    stopped_while_reading(config, tmp_path / "cut")
    cut = run(config, tmp_path / "cut")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    assert cut.manifest.counts == whole.manifest.counts


def test_parquet_and_other_names(make_chat: MakeConfig, tmp_path: Path) -> None:
    """ShareGPT's names in Parquet are the same cache of rows as ours in JSON lines."""
    names = {"user": "human", "assistant": "gpt"}
    rows = [[{"from": names[m["role"]], "value": m["content"]} for m in chat] for chat in CHATS]
    pq.write_table(pa.table({"conversations": rows}), tmp_path / "chats.parquet")
    chat = {
        "column": "conversations",
        "role_key": "from",
        "content_key": "value",
        "rename_roles": {"human": "user", "gpt": "assistant"},
        "roles": ["assistant"],
    }
    there = open_cache(run(make_chat(chat, tmp_path / "chats.parquet"), tmp_path / "there").path)
    here = open_cache(run(make_chat({"roles": ["assistant"]}), tmp_path / "here").path)
    assert (there.tokens[:] == here.tokens[:]).all()
    assert (row_places(there) == row_places(here)).all()


def test_a_template_of_ones_own(make_chat: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(TRIMMED)
    own = run(make_chat({"template": str(tmp_path / "own.jinja")}), tmp_path / "own")
    usual = run(make_chat({}), tmp_path / "usual")
    assert own.manifest.fingerprint != usual.manifest.fingerprint
    (tmp_path / "moved.jinja").write_text(TRIMMED)
    moved = make_chat({"template": str(tmp_path / "moved.jinja")})
    assert run(moved, tmp_path / "own").reused  # a template is what it says, not where it is


@pytest.mark.parametrize(
    ("conversations", "chat", "match"),
    [
        (CHATS, {"roles": ["tool"]}, r"roles=\[tool\] gives no row: .*messages of user, assistant"),
        (CHATS, {"column": "chat"}, r"no column 'chat'; it has: messages. Set text.chat.column"),
        (
            [[{"role": "human", "content": "x"}]],
            {},
            r"chats\.jsonl:1, message 0: unknown role 'human'; .*rename_roles",
        ),
        ([[{"from": "user", "value": "x"}]], {}, r":1, message 0 has no 'role'; it has: from, value"),
        ([*CHATS[:3], "text"], {}, r":4: column 'messages' holds str, expected a list of messages"),
        ([["text"]], {}, r":1, message 0: expected a role and a content, got str"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], {}, r"'content' is list, expected text"),
        ([[], []], {}, r"none with any text"),
    ],
)
def test_bad_chats_are_refused_before_the_model(
    make_chat: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    conversations: list[Any],
    chat: dict[str, Any],
    match: str,
) -> None:
    monkeypatch.setattr(LanguageModel, "from_files", None)
    paths = write_chats(tmp_path / "chats.jsonl", conversations)
    with pytest.raises(UsageError, match=match):
        run(make_chat(chat, paths), tmp_path / "cache")


@pytest.mark.parametrize(
    ("template", "match"),
    [
        (None, "no chat template .*set text.chat.template to a file"),
        (STRICT, r"conversation 0: the chat template cannot write .*no system here.*its roles are system"),
        (SHOUTING, r"does not write the content of message 0 \(system\) as it is"),
        ("{{ messages[0].nothing.at_all }}", r"cannot write this conversation \(UndefinedError"),
        ("{% for %}", r"cannot write this conversation \(TemplateSyntaxError"),
    ],
)
def test_templates_that_cannot_be_used(
    make_chat: MakeConfig,
    chat_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str | None,
    match: str,
) -> None:
    monkeypatch.setattr(LanguageModel, "from_files", None)
    (chat_model / "chat_template.jinja").unlink()
    if template is not None:
        (chat_model / "chat_template.jinja").write_text(template)
    paths = write_chats(tmp_path / "chats.jsonl", [[{"role": "system", "content": "Be brief."}]])
    with pytest.raises(UsageError, match=match):
        run(make_chat({}, paths), tmp_path / "cache")


HOSTILE = [{"role": "user", "content": "x", "name": "\ud800"}]


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        ("\ud800", CHATS[1]),
        ("{{ '\\ud800' }}", CHATS[1]),
        ("\ue00077\ue001", CHATS[1]),
        ("{% for m in messages %}{{ m.name }}{{ m.content }}{% endfor %}", HOSTILE),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", CHATS[1]),
    ],
)  # fmt: skip
def test_hostile_templates_and_messages(
    chat_model: Path, template: str, messages: list[dict[str, Any]]
) -> None:
    with pytest.raises(UsageError, match=r"the chat template (cannot|does not)"):
        tokenizer = SimpleNamespace(
            backend_tokenizer=tokenizer_with(chat_model, None).backend_tokenizer,
            get_chat_template=lambda: template,
            apply_chat_template=tokenizer_with(chat_model, None).apply_chat_template,
        )
        ChatTemplate(tokenizer, ChatConfig()).encode([("here", messages)])


def test_a_template_that_is_no_file(chat_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match=r"cannot be read as a chat template: .*not a regular file"):
        ChatTemplate(tokenizer_with(chat_model, None), ChatConfig(template=str(tmp_path / "fifo")))


@pytest.mark.parametrize("place", ["~nobody_of_this_name/x", "x" * 5000, "a\0b", "\ud800"])
def test_a_template_at_a_place_that_cannot_be(place: str) -> None:
    with pytest.raises(UsageError, match="cannot be read as a chat template"):
        ChatTemplate(SimpleNamespace(backend_tokenizer=True), ChatConfig.model_construct(template=place))


def test_settings_that_cannot_be() -> None:
    def text(**settings: Any) -> Any:
        values = {
            "model": {"name": "builtin:demo"},
            "text": {"kind": "files", "paths": "a", **settings},
            "tokens": {"context": 8},
            "hooks": ["resid_post.0"],
            "num_tokens": 10,
        }
        return HarvestConfig.model_validate(values)

    config = text(chat={"roles": ["user", "assistant"]})
    assert HarvestConfig.model_validate(config.model_dump()) == config
    assert text(chat={"roles": ["assistant", "user"]}) == config  # their order says nothing
    for match, settings in {
        "should have at least 1 item|at least 1": {"chat": {"roles": []}},
        "'user', 'assistant', 'tool'": {"chat": {"roles": ["asistant"]}},
        "exclude each other": {"chat": {}, "pretokenized": {"tokenizer": "unknown"}},
        "set chat.column instead": {"chat": {}, "column": "body"},
        "String should match pattern": {"pretokenized": {"tokenizer": "gpt2"}},
    }.items():
        with pytest.raises(ValidationError, match=match):
            text(**settings)


def test_chats_are_not_text_files(make_chat: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"text\.chat has no effect on text files, such as .*a\.txt"):
        run(make_chat({}, tmp_path / "a.txt"), tmp_path / "cache")
