"""Mistakes of users: found before the model runs, told in words, with nothing left behind."""

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from saecache.common.errors import BadActivationError, UsageError
from saecache.harvest import HarvestConfig, LanguageModel
from saecache.harvest.job import phases
from saecache.harvest.model.files import locate_model, locate_model_of
from saecache.harvest.runner import run

MakeConfig = Callable[..., HarvestConfig]


@pytest.fixture
def copy(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(model_folder("neox"), tmp_path / "copy")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the weights fails the test."""
    monkeypatch.setattr(LanguageModel, "from_files", lambda *_, **__: pytest.fail("the model was loaded"))


def refused(config: HarvestConfig, out: Path, match: str) -> None:
    existed = out.exists()
    with pytest.raises(UsageError, match=match):
        run(config, out)
    assert out.exists() == existed


@pytest.mark.usefixtures("no_model")
def test_a_truncated_weight_file(make_config: MakeConfig, copy: Path, tmp_path: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(make_config(copy), tmp_path / "out", r"model\.safetensors is damaged or incomplete .* again")


@pytest.mark.usefixtures("no_model")
def test_a_model_without_a_tokenizer(make_config: MakeConfig, copy: Path, tmp_path: Path) -> None:
    for file in copy.glob("*token*"):
        file.unlink()
    refused(make_config(copy), tmp_path / "out", r"has no tokenizer \(expected tokenizer\.json")


@pytest.mark.usefixtures("no_model")
def test_text_that_is_not_utf8_in_the_first_file(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"fine")
    text = {"kind": "files", "paths": str(tmp_path / "*.txt")}
    refused(make_config(text=text), tmp_path / "out", r"a\.txt is not UTF-8 text \(byte 3\)")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("line", "match"),
    [
        ('{"text": "broken', r"b\.jsonl:51 is not valid JSON"),
        ('{"text": 5}', r"b\.jsonl:51: column 'text' holds int"),
        ('{"body": "x"}', r"b\.jsonl:51 has no column 'text'"),
    ],
)
def test_a_bad_line_far_behind_is_found_first(
    make_config: MakeConfig, tmp_path: Path, line: str, match: str
) -> None:
    good = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(50))
    (tmp_path / "a.jsonl").write_text(good)
    (tmp_path / "b.jsonl").write_text(good + line + "\n")
    text = {"kind": "files", "paths": str(tmp_path / "*.jsonl")}
    refused(make_config(text=text, num_tokens=100), tmp_path / "out", match)


def test_text_that_changed_is_told_apart_from_other_settings(make_config: MakeConfig, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"document {i} " + "of words " * 20}) + "\n" for i in range(50)]
    file.write_text("".join(lines))
    config = make_config(text={"kind": "files", "paths": str(file)}, num_tokens=500)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(phases, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(config, tmp_path / "out")
    file.write_text("".join([*lines, json.dumps({"text": "one more"})]))
    with pytest.raises(
        UsageError, match=r"(?s)text\.sha256.*with the files as they were, the harvest continues"
    ):
        run(config, tmp_path / "out")
    file.write_text("".join(lines))
    assert not run(config, tmp_path / "out").reused


@pytest.mark.usefixtures("no_model")
def test_an_output_that_is_a_file_or_below_one(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(make_config(), tmp_path / "file", r"file is a file; --out must name a folder")
    refused(make_config(), tmp_path / "file" / "deep" / "cache", r"file is a file, not a folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("no_model")
def test_an_output_that_may_not_be_written(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The administrator may write everywhere, so the system's answer is made up here."""

    def denied(**_options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    refused(make_config(), tmp_path / "cache", r"nothing can be written into .* \(Permission denied\)")


@pytest.mark.usefixtures("no_model")
def test_one_document_cannot_be_divided(make_config: MakeConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one document " * 100)
    text = {"kind": "files", "paths": str(tmp_path / "a.txt")}
    refused(
        make_config(text=text), tmp_path / "out", r"the text is one document, held out whole or not at all"
    )


def test_a_held_out_split_by_default(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auto = run(make_config(heldout_fraction="auto", num_tokens=10**5), tmp_path / "auto")
    assert auto.manifest.heldout_rows > 0
    assert auto.manifest.identity["heldout_fraction"] in (0.01, 0.02, 0.05, 0.1)
    (tmp_path / "a.txt").write_text("one document " * 100)
    text = {"kind": "files", "paths": str(tmp_path / "a.txt")}
    alone = run(make_config(text=text, heldout_fraction="auto"), tmp_path / "alone")
    assert alone.manifest.heldout_rows == alone.manifest.identity["heldout_fraction"] == 0
    shown = capsys.readouterr().err
    assert "the text has 1 document, too few to hold some out" in shown
    assert f"tokens of {tmp_path / 'a.txt'} with" in shown, "one file is named, not counted"


def test_a_cache_of_the_former_default_is_found_again(make_config: MakeConfig, tmp_path: Path) -> None:
    former = run(make_config(heldout_fraction=0.0), tmp_path / "cache")
    again = run(make_config(heldout_fraction="auto"), tmp_path / "cache")
    assert again.reused and again.manifest.fingerprint == former.manifest.fingerprint


def test_damaged_weights_of_float32_are_not_advised_float32(
    make_config: MakeConfig, copy: Path, tmp_path: Path
) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name in tensors if "layers.1.mlp" in name and name.endswith("weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        BadActivationError, match="weights are damaged: copy or download them again"
    ) as caught:
        run(make_config(copy), tmp_path / "out")
    assert "model.dtype=float32" not in str(caught.value)


def test_attention_sinks_are_reported_with_the_setting_that_leaves_them_out(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    honest = LanguageModel.read

    def read(self: LanguageModel, ids: object, hooks: object, receive: Callable[..., None]) -> None:
        def enlarge(name: str, x: torch.Tensor) -> None:
            x = x.clone()
            x[0, 7] *= 100
            receive(name, x)

        honest(self, ids, hooks, enlarge)  # type: ignore[arg-type]

    monkeypatch.setattr(LanguageModel, "read", read)
    run(make_config(num_tokens=3000), tmp_path / "whole")
    shown = capsys.readouterr().err
    assert shown.count("rows are attention sinks (norms above 10 x the median)") == 2, "once for each hook"
    assert "--set selection.sink_ratio=10 leaves them out" in shown
    run(make_config(num_tokens=3000, selection={"sink_ratio": 10}), tmp_path / "cut")
    assert "attention sinks" not in capsys.readouterr().err


def test_no_sinks_no_warning(
    make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(make_config(num_tokens=3000), tmp_path / "cache")
    shown = capsys.readouterr().err
    assert "attention sinks" not in shown
    assert "Loading weights" not in shown, "bars are not for logs"


def test_the_first_line_does_not_wait_for_torch() -> None:
    program = """
import sys
sys.modules["saecache.harvest.job.phases"] = None  # whatever is heavy begins there
from saecache.harvest import HarvestConfig, run
config = HarvestConfig.model_validate({
    "model": {"name": "builtin:demo"}, "text": {"kind": "builtin"}, "tokens": {"context": 8},
    "hooks": "resid_post.0", "num_tokens": "20k"})
assert config.num_tokens == 20_000
try:
    run(config)
except ImportError:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "harvest: checking model builtin:demo" in done.stderr
    assert done.stdout.strip() == "False"


def test_a_device_by_its_number(make_config: MakeConfig, tmp_path: Path) -> None:
    assert make_config(device="cuda:1").device == "cuda:1"
    if not torch.cuda.is_available():
        refused(make_config(device="cuda:1"), tmp_path / "out", "device='cuda:1' cannot be used here")
    refused(make_config(device="abacus"), tmp_path / "out", "device='abacus' cannot be used here")
    with pytest.raises(ValidationError):
        make_config(device="")


def test_a_gguf_file_that_is_not_there_or_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="there is no such file here"):
        locate_model("org/model.gguf")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("saecache.harvest.model.files.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="pip install gguf accelerate"):
        locate_model(str(tmp_path / "model.gguf"))
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"is a file; expected the folder of a saved model"):
        locate_model(str(tmp_path / "model.bin"))


@pytest.mark.parametrize(
    "name",
    [
        "~nobody_of_this_name/a", "x" * 5000, "./" + "x" * 300, "a/" + "x" * 5000, "a\0b", "\ud800",
        "package:__main__/x", "package:encodings/" + "x" * 5000, "package:numpy/a\0b", "x" * 5000 + ".gguf",
        "\ud800/x", "a\0.gguf", "~nobody_of_this_name/a.gguf",
    ],
)  # fmt: skip
def test_names_that_no_model_can_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for where in ({"provenance": {"model_folder": name}}, {"facts": {"name": name}}):
        with pytest.raises(UsageError, match=r"cannot be opened again(?s:.)* model_folder=FOLDER"):
            locate_model_of(NamedModel(**where))


@pytest.mark.parametrize("revision", [{"a": 1}, 5, ["x"], True, "\ud800", "x" * 5000])
def test_revisions_that_are_none(revision: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot be opened again"):
        locate_model_of(NamedModel(facts={"name": "org/none", "revision": revision}))


class NamedModel:
    """As much of a cache as names its model."""

    path = "cache"

    def __init__(self, facts: dict[str, object] | None = None, provenance: dict[str, object] | None = None):
        self.manifest = SimpleNamespace(identity={"model": facts or {"name": "moved"}})
        self.provenance = provenance or {}
