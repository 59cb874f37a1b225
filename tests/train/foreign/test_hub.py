"""``hf://`` names: what is asked of huggingface_hub, which a local folder stands for here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from saecache.common.errors import UsageError
from saecache.train import load_sae

from .layouts import layouts, rows

FOLDER = "layer_3/width_16k/average_l0_7"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A Hub that has one repository; the list of what was asked of it."""
    layouts()["gemma_scope"].write(tmp_path)
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **settings: Any) -> str:
        asked.append({"name": name, **settings})
        if name != "google/gemma-scope-2b-pt-res":
            raise LocalEntryNotFoundError("no connection")
        return str(tmp_path / "gemma-scope-2b-pt-res")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("saecache.train.foreign.hub._is_published", lambda _: False)
    return asked


def test_one_folder_is_downloaded_and_loaded(hub: list[dict[str, Any]]) -> None:
    sae = load_sae(f"hf://google/gemma-scope-2b-pt-res@abc123/{FOLDER}")
    features, _ = layouts()["gemma_scope"].forward(rows())
    assert torch.allclose(sae.encode(rows(), input="raw"), features, atol=1e-5)
    (asked,) = hub
    assert (asked["name"], asked["revision"]) == ("google/gemma-scope-2b-pt-res", "abc123")
    assert {f"{FOLDER}/params.npz", f"{FOLDER}/checkpoints/final.safetensors"} <= set(asked["allow_patterns"])
    assert all(pattern.startswith(f"{FOLDER}/") and "*" not in pattern for pattern in asked["allow_patterns"])


@pytest.mark.parametrize(
    ("name", "repository", "kind", "revision", "folder"),
    [
        ("hf://models/org/name/x", "org/name", "model", "main", "x/"),
        ("hf://datasets/org/name", "org/name", "dataset", "main", ""),
        ("hf://org/name@refs/pr/3/f", "org/name", "model", "refs/pr/3", "f/"),
        ("hf://org/name@feature%2Fx/a/b/", "org/name", "model", "feature/x", "a/b/"),
    ],
)
def test_names_mean_what_they_mean_for_caches(
    name: str, repository: str, kind: str, revision: str, folder: str, hub: list[dict[str, Any]]
) -> None:
    with pytest.raises(UsageError, match="cannot be downloaded"):
        load_sae(name)
    (asked,) = hub
    assert (asked["name"], asked["repo_type"], asked["revision"]) == (repository, kind, revision)
    assert f"{folder}cfg.json" in asked["allow_patterns"]


@pytest.mark.parametrize("name", ["hf://google", "hf://a/b/../c", "hf://a/b/*", "hf:///x", "hf://a/b c"])
def test_names_that_are_none(name: str, hub: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match=r"names no SAE of the Hub: expected hf://ORG/NAME"):
        load_sae(name)
    assert hub == []


def test_what_is_not_there(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match=r"cannot be downloaded \(no connection\): check the name"):
        load_sae("hf://nobody/nothing/folder")
    with pytest.raises(UsageError, match=r"has no folder 'layer_4' with an SAE in it"):
        load_sae("hf://google/gemma-scope-2b-pt-res/layer_4")
