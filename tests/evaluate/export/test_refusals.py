"""Bad input, and exports that would be wrong: told, and nothing is left behind."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from saecache.common.errors import SaecacheError, UsageError
from saecache.evaluate.export import export_sae
from saecache.evaluate.export.formats.saelens import SAELens
from saecache.evaluate.export.formats.sparsify import Sparsify
from saecache.evaluate.export.new_folder import new_folder
from saecache.evaluate.export.rules import choose_rule
from saecache.store.reading.reader import ActivationCache
from saecache.testing.sparse_rows import write_sparse_cache
from saecache.train import SAE, Pairs, load_sae
from saecache.train.tensor_file import read_tensors, write_tensors
from saecache.train.variants.base.rows import Rows
from saecache.train.variants.topk import TopK

from .conftest import Trained


def changed(folder: Path, out: Path, **tensors: torch.Tensor) -> Path:
    """The SAE of ``folder`` with other tensors."""
    sae = load_sae(folder)
    SAE(sae.cfg, {**dict(sae.named_buffers()), **tensors}).save(out)
    return out


def test_unknown_format_lists_the_known(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format 'onnx': expected one of circuit_tracer, dictionary"):
        export_sae(trained("topk", "scale"), "onnx", tmp_path / "out")


def test_a_folder_that_is_no_sae(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no SAE in .*it has no cfg.json; expected an SAE folder"):
        export_sae(tmp_path, "saelens", tmp_path / "out")
    with pytest.raises(UsageError, match=r"no SAE in .*there is no such folder"):
        export_sae(tmp_path / "absent", "saelens", tmp_path / "out")


def test_a_run_of_several_saes_asks_which(trained: Trained, tmp_path: Path) -> None:
    folder = trained("topk", "scale")
    with pytest.raises(UsageError, match=r"holds \d+ SAEs, and one is exported at a time: name one of them"):
        export_sae(folder.parent.parent, "saelens", tmp_path / "out")
    shutil.copytree(folder, tmp_path / "run" / "topk" / "sae")
    assert export_sae(tmp_path / "run", "saelens", tmp_path / "out").sae == "topk"


def test_nothing_is_overwritten(trained: Trained, tmp_path: Path) -> None:
    folder = trained("topk", "scale")
    export_sae(folder, "saelens", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    for place in ("out", "empty", "file"):
        with pytest.raises(UsageError, match=f"{place} exists, and nothing is overwritten"):
            export_sae(folder, "saelens", tmp_path / place)
    with pytest.raises(UsageError, match="file is a file"):
        export_sae(folder, "saelens", tmp_path / "file" / "below")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_url_and_a_full_disk(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="--out must name a folder, got the URL s3://team/sae"):
        export_sae(trained("topk", "scale"), "saelens", "s3://team/sae")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UsageError, match=r"not enough disk space at .*choose another --out"):
        export_sae(trained("topk", "scale"), "saelens", tmp_path / "out")


def test_another_cache_is_refused(trained: Trained, tmp_path: Path) -> None:
    other = write_sparse_cache(tmp_path / "other", num_rows=500)
    with pytest.raises(UsageError, match="was trained from another cache: expected fingerprint"):
        export_sae(trained("topk", "scale"), "saelens", tmp_path / "out", cache=other)
    assert not (tmp_path / "out").exists()


def test_a_rule_that_only_agrees_on_most_rows_needs_rows(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"selects by 'probabilistic_topk', which saelens has only as 'topk'"
    ):
        export_sae(trained("probabilistic_topk", "unit"), "saelens", tmp_path / "out")


def test_such_a_rule_is_refused_where_it_does_not_agree(
    trained: Trained, cache: ActivationCache, tmp_path: Path
) -> None:
    folder = trained("probabilistic_topk", "scale")
    sae = load_sae(folder)
    opposed = sae.W_enc.clone()
    opposed[1::2] = -opposed[::2]  # as many below 0 as above, so that |a| ranks others than a does
    wide = changed(folder, tmp_path / "wide", W_enc=opposed, beta=torch.tensor(1e4))
    with pytest.raises(SaecacheError, match=r"was not written.*mask_difference .*select too differently"):
        export_sae(wide, "saelens", tmp_path / "out", cache=cache)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wide"]


def test_a_rule_of_which_nothing_is_known(trained: Trained, tmp_path: Path) -> None:
    load_sae(trained("topk", "scale")).save(tmp_path / "sae")
    path = tmp_path / "sae" / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "inference": "magic"}))
    with pytest.raises(UsageError, match="inference is 'magic', and the rest says 'topk'"):
        export_sae(tmp_path / "sae", "saelens", tmp_path / "out")
    sae = load_sae(trained("topk", "scale"))
    unknown = SAE(sae.cfg.model_copy(update={"inference": "magic"}), dict(sae.named_buffers()))
    with pytest.raises(UsageError, match="finds its codes by 'magic', which no format can express"):
        choose_rule(unknown)


def test_a_kind_that_declares_a_rule_that_is_not_its_own(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = TopK.encode

    def signed(self: TopK, rows: Rows, *, as_trained: bool = False) -> Pairs:
        codes = encode(self, rows)
        return codes.with_value(-codes.value)

    monkeypatch.setattr(TopK, "encode", signed)
    for format_name in ("saelens", "dictionary_learning", "sparsify"):
        with pytest.raises(SaecacheError, match=r"would not compute what the SAE does, and was not written"):
            export_sae(trained("topk", "scale"), format_name, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_thresholds_below_zero(trained: Trained, tmp_path: Path) -> None:
    folder = changed(trained("batch_topk", "scale"), tmp_path / "sae", threshold=torch.tensor(-0.5))
    with pytest.raises(UsageError, match=r"thresholds below 0, as -0\.5"):
        export_sae(folder, "saelens", tmp_path / "out")


@pytest.mark.parametrize(
    ("kind", "tensor", "told"),
    [
        ("feature_choice", "threshold", r"threshold should have shape \(96,\) or \(\), got \(5,\)"),
        ("gated", "b_mag", r"b_mag should have shape \(96,\), got \(5,\)"),
    ],
)
def test_tensors_of_another_shape(
    kind: str, tensor: str, told: str, trained: Trained, tmp_path: Path
) -> None:
    folder = changed(trained(kind, "scale"), tmp_path / "sae", **{tensor: torch.ones(5)})
    with pytest.raises(UsageError, match=rf"tensor {tensor} should be float32 .*\[96\], got float32 \[5\]"):
        export_sae(folder, "saelens", tmp_path / "out")
    sae = load_sae(trained(kind, "scale"))
    with pytest.raises(UsageError, match=told):
        choose_rule(SAE(sae.cfg, {**dict(sae.named_buffers()), tensor: torch.ones(5)}))


def test_weights_that_are_not_finite(trained: Trained, tmp_path: Path) -> None:
    b_dec = load_sae(trained("topk", "scale")).b_dec.clone()
    b_dec[3] = torch.nan
    folder = changed(trained("topk", "scale"), tmp_path / "sae", b_dec=b_dec)
    with pytest.raises(UsageError, match=r"tensor b_dec is not finite"):
        export_sae(folder, "saelens", tmp_path / "out")
    sae = load_sae(trained("topk", "scale"))
    with pytest.raises(UsageError, match=r"SAE topk .*: tensor b_dec is not finite"):
        choose_rule(SAE(sae.cfg, {**dict(sae.named_buffers()), "b_dec": b_dec}))


def test_latents_that_are_never_active_stay_so(
    trained: Trained, cache: ActivationCache, tmp_path: Path
) -> None:
    sae = load_sae(trained("feature_choice", "scale"))
    assert sae.threshold is not None
    threshold = sae.threshold.clone()
    threshold[::3] = torch.inf
    folder = changed(trained("feature_choice", "scale"), tmp_path / "sae", threshold=threshold)
    for name in ("saelens", "dictionary_learning"):
        export = export_sae(folder, name, tmp_path / name, cache=cache)
        assert export.comparisons[-1].mask_difference == 0
        assert export.comparisons[-1].l0 > 1


def damaging(kind: type[Any], file: str, tensor: str, value: float) -> Any:
    """``write`` of a format, after which one tensor is another."""
    write = kind.write

    def damaged(self: Any, what: Any, folder: Path) -> Any:
        written = write(self, what, folder)
        tensors = read_tensors(folder / file)
        tensors[tensor].view(-1)[:40] += value
        write_tensors(folder / file, tensors)
        return written

    return damaged


@pytest.mark.parametrize(
    ("tensor", "value", "told"),
    [
        ("W_dec", 0.01, "reconstruction .*at most 0.001"),
        ("W_enc", 0.01, "feature .*at most 0.001"),
        ("threshold", 0.2, "mask_difference .*at most 0.001"),
        ("b_dec", torch.nan, "feature inf"),
    ],
)
def test_what_was_written_is_compared(
    tensor: str, value: float, told: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = damaging(SAELens, "sae_weights.safetensors", tensor, value)
    monkeypatch.setattr(SAELens, "write", damaged)
    with pytest.raises(SaecacheError, match=f"jumprelu would not compute what the SAE does.*{told}"):
        export_sae(trained("batch_topk", "scale"), "saelens", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_while_writing_leaves_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Sparsify, "write", full)
    with pytest.raises(SaecacheError, match=r"the disk ran full while writing .*out"):
        export_sae(trained("topk", "scale"), "sparsify", tmp_path / "out")
    monkeypatch.setattr(Sparsify, "write", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(SaecacheError, match=r"cannot write .*out: .*denied"):
        export_sae(trained("topk", "scale"), "sparsify", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_goes(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").mkdir()
    (tmp_path / ".out.tmp" / "half.safetensors").write_bytes(b"half")
    export_sae(trained("topk", "scale"), "sparsify", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cfg.json",
        "sae.safetensors",
        "saecache-export.json",
    ]


def test_two_at_a_time(trained: Trained, tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as folder:
        (folder / "mine").write_text("mine")
        with pytest.raises(UsageError, match=r"out is being written by another process"):
            export_sae(trained("topk", "scale"), "sparsify", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    with (
        pytest.raises(UsageError, match=r"late was made meanwhile by another process"),
        new_folder(tmp_path / "late"),
    ):
        (tmp_path / "late").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["late", "out"]


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    """Formats of latents have folders in theirs."""
    (tmp_path / ".out.tmp" / "layers.3").mkdir(parents=True)
    (tmp_path / ".out.tmp" / "layers.3" / "0_1.safetensors").write_bytes(b"half")
    with new_folder(tmp_path / "out") as folder:
        (folder / "mine").write_text("mine")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine"]


def test_nothing_is_written_or_removed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "thesis.tex").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".out.tmp").symlink_to(tmp_path / "elsewhere")
    with new_folder(tmp_path / "run" / "out") as folder:
        (folder / "mine").write_text("mine")
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["thesis.tex"]
    assert not (tmp_path / "run" / "out").is_symlink()
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["out", "mine"]
