"""Whatever the files of a run or of an SAE hold, the outcome is right or a message of ours, in bounded work.

A run that is resumed must end with the bytes of one that was never stopped, or refuse.
"""

import json
import logging
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from saecache.commands.train import _train_table
from saecache.common.errors import SaecacheError, UsageError
from saecache.store.reading.reader import ActivationCache
from saecache.testing.run_folders import folder_bytes
from saecache.testing.shapes import SHAPES
from saecache.train import TrainConfig, load_sae, run
from saecache.train.tensor_file import read_header, read_tensors

from ..hostile import (
    CASES,
    check_nothing_outside,
    damaged_json,
    in_its_place,
    mutated,
    replace_with,
    right_or_refused,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="FIFOs, and the peak of memory in /proc")

NAME = "batch_topk_k3"
SEVERAL = ("transcoder with skip", "crosscoder", "cross-layer transcoder")
FILES = ("cfg.json", "weights.safetensors")
LAST = "step_00000008"
CHECKPOINT_FILES = (*FILES, "training.safetensors", "progress.json")


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "variants": [{"kind": "batch_topk", "k": 3}],
            "num_latents": 48,
            "batch_rows": 128,
            "steps": 8,
            "device": "cpu",
            "checkpoint": {"every_steps": 3, "keep": 9},
            "log": {"every_steps": 2, "progress": False},
        }
    )


@pytest.fixture(scope="module")
def trained(cache: ActivationCache, config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with checkpoints after 3, 6 and 8 steps."""
    return run(config, cache, tmp_path_factory.mktemp("trained") / "run").run_dir


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return Path(shutil.copytree(trained, tmp_path / "run"))

    return make


@pytest.fixture
def unfinished(finished: Callable[[], Path]) -> Callable[[], Path]:
    """The run as it was killed after its last checkpoint."""

    def make() -> Path:
        out = finished()
        shutil.rmtree(out / NAME / "sae")
        record = json.loads((out / "run.json").read_text())
        (out / "run.json").write_text(json.dumps({**record, "finished": False}))
        return out

    return make


@pytest.fixture
def resume(cache: ActivationCache, config: TrainConfig, trained: Path) -> Callable[[Path], Any]:
    """Run again; what comes out, if anything does, is the SAE of the run that was never stopped."""

    def call(out: Path) -> Any:
        result = right_or_refused(lambda: run(config, cache, out))
        if result is not None and result.saes:
            assert folder_bytes(result.saes[NAME]) == folder_bytes(trained / NAME / "sae")
        return result

    return call


def use(folder: Path) -> Any:
    sae = load_sae(folder)
    x = torch.ones(2, sae.cfg.d_model)
    return sae(x, input="raw"), sae.encode(x, as_trained=True)


# ---- SAE folders


@pytest.mark.parametrize("name", FILES)
def test_any_bytes_in_an_sae_folder(name: str, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / NAME / "sae", tmp_path / "sae")
    content = (folder / name).read_bytes()
    for seed in range(CASES):
        (folder / name).write_bytes(mutated(content, seed))
        right_or_refused(lambda: use(folder))


def test_any_value_in_the_config_of_an_sae(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / NAME / "sae", tmp_path / "sae")
    content = (folder / "cfg.json").read_bytes()
    for seed in range(3 * CASES):
        (folder / "cfg.json").write_bytes(damaged_json(content, seed))
        right_or_refused(lambda: use(folder))


@pytest.fixture(scope="module")
def several(cache_of_two_hooks: ActivationCache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SAEs of several hooks, by shape."""
    found = {}
    for shape in SEVERAL:
        settings = {"variants": [{"kind": "topk", "k": 3}], "num_latents": 48, "batch_rows": 128, "steps": 2}
        config = TrainConfig.model_validate({**settings, "device": "cpu", **SHAPES[shape].run})
        (found[shape],) = run(
            config, cache_of_two_hooks, tmp_path_factory.mktemp("several") / "run"
        ).saes.values()
    return found


@pytest.mark.parametrize("shape", SEVERAL)
def test_any_value_in_the_config_of_an_sae_of_several_hooks(
    shape: str, several: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(several[shape], tmp_path / "sae")
    content = (folder / "cfg.json").read_bytes()
    for seed in range(CASES):
        (folder / "cfg.json").write_bytes(damaged_json(content, seed))
        right_or_refused(lambda: use(folder))


@pytest.mark.parametrize(
    ("shape", "key", "change", "message"),
    [
        (
            "transcoder with skip",
            "target",
            {"d_model": 9},
            r"normalization.d_model is 16, and the hook's width 9",
        ),
        ("transcoder with skip", "target", {"hook": "\x1b[2J"}, "hook holds characters that cannot be shown"),
        ("transcoder with skip", "target", {"skip": False}, r"lacks the tensors \[\], and has \['W_skip'\]"),
        (
            "transcoder with skip",
            "target",
            {"normalization": {"kind": "unit", "d_model": 16, "scale": 1.0}},
            "target.normalization is unit, which cannot be inverted",
        ),
        ("crosscoder", "hook", "resid", "its hooks should be two or more, .* of 40 dimensions in all"),
        ("crosscoder", "hooks", [], "its hooks should be two or more"),
        (
            "crosscoder",
            "normalization",
            {"kind": "unit", "d_model": 40, "scale": 1.0},
            "with normalization joined",
        ),
    ],
)
def test_a_config_of_several_hooks_that_contradicts_itself(
    shape: str, key: str, change: Any, message: str, several: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(several[shape], tmp_path / "sae")
    values = json.loads((folder / "cfg.json").read_text())
    values[key] = {**values[key], **change} if key == "target" else change
    (folder / "cfg.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=message):
        load_sae(folder)


def test_any_value_in_the_header_of_the_weights(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / NAME / "sae", tmp_path / "sae")
    content = (folder / "weights.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    for seed in range(CASES):
        header = damaged_json(content[8 : 8 + length], seed)
        data = struct.pack("<Q", len(header)) + header + content[8 + length :]
        (folder / "weights.safetensors").write_bytes(data)
        right_or_refused(lambda: use(folder))


@in_its_place
@pytest.mark.parametrize("name", FILES)
def test_something_else_in_an_sae_folder(name: str, what: str, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / NAME / "sae", tmp_path / "above" / "sae")
    replace_with(what, folder / name)
    assert right_or_refused(lambda: use(folder)) is None


def test_linked_files_are_read(trained: Path, tmp_path: Path) -> None:
    for name in FILES:  # as in the download cache of a hub
        (tmp_path / name).symlink_to(trained / NAME / "sae" / name)
    assert load_sae(tmp_path).cfg.name == NAME


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": {"kind": "batch_topk"} | dict.fromkeys("abcdefghijklmnopqrstuvwxyz", 0)}, "and more"),
        ({"name": "\x1b[2J"}, "cannot be the name of an SAE"),
        ({"name": "a/../../../b"}, "cannot be the name of an SAE"),
        ({"name": ".."}, "cannot be the name of an SAE"),
        ({"name": "a\\b"}, "cannot be the name of an SAE"),
        ({"name": ""}, "cannot be the name of an SAE"),
        ({"name": "x" * 300}, "cannot be the name of an SAE"),
        ({"kind": "topk"}, "kind is 'topk', and the rest says 'batch_topk'"),
        ({"inference": "topk"}, "inference is 'topk', and the rest says 'threshold'"),
        ({"normalization": {"kind": "none", "d_model": 12, "scale": 1.0}}, "d_model is 12, and"),
        ({"normalization": {"d_model": 24}}, "normalization"),
        ({"normalization": {"kind": "none", "d_model": 24, "scale": "wide"}}, "normalization"),
        ({"normalization": {"kind": "scale", "d_model": 24, "scale": 1e-46}}, "normalization scale"),
        ({"normalization": {"kind": "scale", "d_model": 24, "scale": 1e39}}, "normalization scale"),
        ({"k": -1}, "k: must be greater"),
        ({"num_latents": 0}, "num_latents: must be greater"),
        ({"variant": {"kind": "batch_topk", "k": 49}}, "k=49 of 48 latents"),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_itself(
    trained: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = shutil.copytree(trained / NAME / "sae", tmp_path / "sae")
    values = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UsageError, match=message):
        load_sae(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("W_dec", lambda t: t.half(), r"W_dec should be float32 \[48, 24\], got float16 \[48, 24\]"),
        ("W_enc", lambda t: t[:1], r"W_enc should be float32 \[48, 24\], got float32 \[1, 24\]"),
        ("b_enc", lambda t: t.to(torch.int64), r"b_enc should be float32 \[48\], got int64 \[48\]"),
        ("b_dec", lambda t: t.fill_(torch.inf), "b_dec is not finite"),
        ("W_dec", lambda t: t.fill_(torch.nan), "W_dec is not finite"),
        ("threshold", lambda t: t.fill_(torch.nan), "threshold is not finite"),
        ("threshold", lambda t: t.fill_(-torch.inf), "threshold is not finite"),
        ("threshold", lambda t: torch.zeros(47), r"be float32 \[\] or float32 \[48\], got float32 \[47\]"),
        ("forward", lambda t: torch.zeros(1), r"has \['forward'\] beside"),
    ],
)  # fmt: skip
def test_weights_that_contradict(
    trained: Path, tmp_path: Path, name: str, change: Callable[[Any], torch.Tensor], message: str
) -> None:
    folder = shutil.copytree(trained / NAME / "sae", tmp_path / "sae")
    tensors = load_file(folder / "weights.safetensors")
    tensors[name] = change(tensors.get(name))
    save_file(tensors, folder / "weights.safetensors")
    with pytest.raises(UsageError, match=message):
        load_sae(folder)


def test_a_latent_that_is_never_active_has_an_infinite_threshold(trained: Path, tmp_path: Path) -> None:
    sae = load_sae(trained / NAME / "sae")
    assert sae.threshold is not None
    sae.threshold.fill_(torch.inf)
    sae.save(tmp_path)
    assert torch.equal(load_sae(tmp_path).encode(torch.ones(2, 24)), torch.zeros(2, 48))


def test_tensors_that_no_memory_holds_are_not_allocated(trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained / NAME / "sae", tmp_path / "sae")
    latents, values = 10**10, json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**values, "num_latents": latents}))
    at, header = 0, {}
    for name, shape in {
        "W_dec": [latents, 24], "W_enc": [latents, 24], "b_dec": [24], "b_enc": [latents], "threshold": [],
    }.items():  # fmt: skip
        size = 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(header).encode()
    with (folder / "weights.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + at)  # a sparse file: no byte of it takes room
    with pytest.raises(UsageError, match=r"takes 1,825 GiB|takes 1\.\d+ TiB of memory"):
        right_or_raise(lambda: load_sae(folder))


def right_or_raise(call: Callable[[], Any]) -> Any:
    from ..hostile import bounded

    with bounded():
        return call()


@pytest.mark.parametrize("entry", [{"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}])
def test_a_gap_in_a_tensor_file(tmp_path: Path, entry: dict[str, Any]) -> None:
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "t").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(UsageError, match="overlap or leave a gap at byte 0"):
        read_header(tmp_path / "t")


def test_a_header_that_ends_after_the_file(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(UsageError, match="its header would end after the file, which has 10 bytes"):
        read_tensors(tmp_path / "t")


# ---- run folders


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", f"{NAME}/failed.json"])
def test_any_bytes_in_the_records_of_a_run(
    name: str, finished: Callable[[], Path], resume: Callable[[Path], Any]
) -> None:
    out = finished()
    path = out / name
    content = path.read_bytes() if path.exists() else b'{"step": 2, "reason": "NaN"}'
    for seed in range(CASES):
        damage = damaged_json if seed % 2 and name != "metrics.jsonl" else mutated
        path.write_bytes(damage(content, seed))
        resume(out)


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_any_bytes_in_a_checkpoint(
    name: str, unfinished: Callable[[], Path], resume: Callable[[Path], Any]
) -> None:
    for seed in range(CASES // 3):
        out = unfinished()
        path = out / NAME / "checkpoints" / LAST / name
        damage = damaged_json if seed % 2 and name.endswith(".json") else mutated
        path.write_bytes(damage(path.read_bytes(), seed))
        assert resume(out) is not None, "two good checkpoints are left"


@in_its_place
@pytest.mark.parametrize(
    "name",
    ["run.json", "config.yaml", "metrics.jsonl", ".lock", NAME, f"{NAME}/checkpoints", f"{NAME}/failed.json",
     f"{NAME}/checkpoints/{LAST}", *(f"{NAME}/checkpoints/{LAST}/{file}" for file in CHECKPOINT_FILES),
     f"{NAME}/checkpoints/step_00000009", f"{NAME}/checkpoints/step_abcdefgh", f"{NAME}/checkpoints/x.tmp",
     "metrics.jsonl.tmp", "run.json.tmp", f"{NAME}/sae/weights.safetensors.tmp", f"{NAME}/sae/cfg.json.tmp"],
)  # fmt: skip
def test_something_else_in_a_run_folder(
    name: str, what: str, unfinished: Callable[[], Path], resume: Callable[[Path], Any]
) -> None:
    out = unfinished()
    replace_with(what, out / name)
    resume(out)
    check_nothing_outside(out / name)


# ---- checkpoints


def warnings_of(log: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in log.records if record.levelno == logging.WARNING)


@pytest.mark.parametrize("name", CHECKPOINT_FILES[:3])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_one_flipped_bit_in_a_checkpoint(
    name: str,
    share: float,
    unfinished: Callable[[], Path],
    resume: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = unfinished()
    path = out / NAME / "checkpoints" / LAST / name
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    assert resume(out).saes
    assert f"a checkpoint is not used (step 8: {path} is damaged: its sha256 is" in warnings_of(caplog)
    assert "continuing from step 6 instead" in warnings_of(caplog)


def without_checksums(checkpoint: Path) -> None:
    step = json.loads((checkpoint / "progress.json").read_text())["step"]
    (checkpoint / "progress.json").write_text(json.dumps({"step": step}))


def test_a_checkpoint_of_before_has_no_checksums(
    unfinished: Callable[[], Path], resume: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    out = unfinished()
    for step in (3, 8):
        without_checksums(out / NAME / "checkpoints" / f"step_{step:08d}")
    shutil.rmtree(out / NAME / "checkpoints" / "step_00000006")
    caplog.set_level(logging.INFO)
    assert resume(out).saes
    assert not warnings_of(caplog) and "after step 8 of 8" in caplog.text


@pytest.mark.parametrize(
    ("file", "tensor", "change", "message"),
    [
        ("weights.safetensors", "W_enc", lambda t: t[:1], r"got float32 \[1, 24\]"),
        ("training.safetensors", "optimizer/exp_avg.W_enc", lambda t: t.long(), r"got int64 \[48, 24\]"),
        ("training.safetensors", "optimizer/exp_avg_sq.b_enc", lambda t: t[:1], r"got float32 \[1\]"),
        ("training.safetensors", "optimizer/steps", lambda t: t.float(), r"got float32 \[\]"),
        ("training.safetensors", "interval/losses.mse", lambda t: t.expand(9), r"got float64 \[9\]"),
        ("training.safetensors", "surprise", lambda t: torch.zeros(1), "surprise"),
    ],
)
def test_tensors_that_would_be_converted_or_repeated(
    file: str,
    tensor: str,
    change: Callable[[Any], torch.Tensor],
    message: str,
    unfinished: Callable[[], Path],
    resume: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = unfinished()
    last = out / NAME / "checkpoints" / LAST
    without_checksums(last)
    tensors = load_file(last / file)
    tensors[tensor] = change(tensors.get(tensor)).contiguous()
    save_file(tensors, last / file)
    assert resume(out).saes
    assert "continuing from step 6" in caplog.text
    import re

    assert re.search(message, caplog.text)


def test_a_renamed_checkpoint_is_not_used(
    unfinished: Callable[[], Path], resume: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    out = unfinished()
    folder = out / NAME / "checkpoints"
    shutil.rmtree(folder / LAST)
    shutil.copytree(folder / "step_00000003", folder / "step_00000007")
    assert resume(out).saes
    assert "step_00000007 holds step 3: it was renamed, or is damaged" in caplog.text


def test_a_checkpoint_beyond_the_run_is_not_used(
    unfinished: Callable[[], Path], resume: Callable[[Path], Any]
) -> None:
    out = unfinished()
    folder = out / NAME / "checkpoints"
    beyond = shutil.copytree(folder / LAST, folder / "step_99999999")
    progress = json.loads((beyond / "progress.json").read_text())
    (beyond / "progress.json").write_text(json.dumps({**progress, "step": 99999999}))
    assert resume(out).saes
    assert folder_bytes(beyond), "what is not ours stays"


def test_no_good_checkpoint_is_an_error_with_the_way_out(
    unfinished: Callable[[], Path], cache: ActivationCache, config: TrainConfig
) -> None:
    out = unfinished()
    for checkpoint in (out / NAME / "checkpoints").iterdir():
        (checkpoint / "weights.safetensors").write_bytes(b"")
    with pytest.raises(
        SaecacheError, match=r"(?s)no checkpoint of .*step 8.*step 6.*step 3.*remove the folders"
    ):
        run(config, cache, out)
    shutil.rmtree(out / NAME / "checkpoints")
    assert run(config, cache, out).saes
    assert not (out / NAME / "checkpoints" / "x").exists()


def test_a_refused_checkpoint_does_not_push_out_a_good_one(
    unfinished: Callable[[], Path], cache: ActivationCache, config: TrainConfig
) -> None:
    out = unfinished()
    folder = out / NAME / "checkpoints"
    for step in (6, 8):
        (folder / f"step_{step:08d}" / "weights.safetensors").write_bytes(b"")
    from saecache.train.runs.checkpoint import prune, saved_steps

    prune(out / NAME, keep=1, step=3)
    assert saved_steps(out / NAME) == [3, 6, 8]


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300, "a\0b", "\ud800", "~nobody_of_this_name/x"])
def test_a_name_that_no_folder_can_have(
    name: str, config: TrainConfig, cache: ActivationCache, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="there is no such folder"):
        load_sae(name)
    with pytest.raises(UsageError, match="there is no such folder"):
        run(config.model_copy(update={"init": name, "num_latents": None}), cache, tmp_path / "run")


HUGE = 10**400


@pytest.mark.parametrize("value", ["x", None, True, [1], {}, HUGE])
@pytest.mark.parametrize("key", ["loss", "fvu", "heldout_fvu", "l0", "dead"])
def test_what_is_no_number_is_no_figure_of_a_finished_run(
    key: str, value: Any, finished: Callable[[], Path], cache: ActivationCache, config: TrainConfig
) -> None:
    out = finished()
    *lines, last = (out / "metrics.jsonl").read_text().splitlines()
    values = json.loads(last)
    (out / "metrics.jsonl").write_text("\n".join([*lines, json.dumps({**values, key: value}), ""]))
    result = run(config, cache, out)
    assert result.last_lines[NAME] == {name: figure for name, figure in values.items() if name != key}
    assert " - " in _train_table(result) or _train_table(result).endswith("-")


def test_figures_of_other_types_are_shown(
    finished: Callable[[], Path], cache: ActivationCache, config: TrainConfig
) -> None:
    out = finished()
    values = {"variant": NAME, "step": 8, "loss": 10**300, "fvu": 10**300, "l0": -1, "dead": 2.5}
    (out / "metrics.jsonl").write_text(json.dumps(values) + "\n")
    assert "1e+300" in _train_table(run(config, cache, out))
