"""Settings that contradict one another are refused when they are read."""

import pytest
from pydantic import ValidationError

from saecache.harvest import HarvestConfig

BASE = {
    "model": {"name": "builtin:demo"},
    "text": {"kind": "builtin"},
    "tokens": {"context": 8},
    "hooks": ["resid_post.0"],
    "num_tokens": 10,
}


def test_defaults() -> None:
    config = HarvestConfig.model_validate(BASE)
    assert config.tokens.packing == "packed"
    assert config.selection.exclude_bos
    assert config.selection.sink_ratio is None
    assert HarvestConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hooks": ["a.0", "a.0"]}, "listed twice: a.0"),
        ({"hooks": []}, "at least 1"),
        (
            {"tokens": {"context": 8, "packing": "per_document", "separator": "eos"}},
            "separator has no effect",
        ),
        ({"tokens": {"context": 1, "bos": "always"}}, "at least 2"),
        ({"tokens": {"context": 8, "min_document_tokens": 4, "max_document_tokens": 3}}, "must not be below"),
        ({"selection": {"sink_ratio": 0.5}}, "greater than 1"),
        ({"heldout_fraction": 1.0}, "less than 1"),
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"num_tokens": 0}, "greater than or equal to 1"),
        ({"text": {"kind": "files", "paths": []}}, "at least 1"),
        ({"text": {"kind": "web"}}, "does not match any of the expected tags"),
        ({"modle": 1}, "Extra inputs are not permitted"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HarvestConfig.model_validate({**BASE, **change})


def test_one_hook_and_one_path_need_no_list() -> None:
    text = {"kind": "files", "paths": "a.txt"}
    config = HarvestConfig.model_validate({**BASE, "hooks": "resid_post.0", "text": text})
    assert config.hooks == ("resid_post.0",)
    assert config.text.paths == ("a.txt",)
