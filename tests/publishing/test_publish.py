"""An SAE is published with its card, and loads from where it was published."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from saecache.cli import app
from saecache.common.errors import CorruptCacheError, UsageError
from saecache.evaluate.results import read_results
from saecache.publishing import publish_sae
from saecache.publishing.card import make_card
from saecache.store.remote import RemoteFolder, open_remote_folder
from saecache.testing.sparse_rows import small_run, write_sparse_cache
from saecache.train import load_sae, run
from saecache.train.published import MANIFEST_NAME, fetch_sae

URL = "hf://me/my-sae"
FILES = {
    "README.md",
    "cfg.json",
    "config.yaml",
    "results.json",
    "results.svg",
    "saecache.json",
    "weights.safetensors",
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two SAEs with its results."""
    folder = tmp_path_factory.mktemp("runs")
    cache = write_sparse_cache(folder / "cache")
    run(small_run({"kind": "topk", "k": [4, 6]}), cache, folder / "run")
    done = CliRunner().invoke(
        app, ["evaluate", str(folder / "run"), "--cache", str(folder / "cache"), "--no-model"]
    )
    assert done.exit_code == 0, done.output
    return folder / "run"


@pytest.fixture
def runs(measured: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(measured, tmp_path / "run"))


def files_of(hub: Any, name: str = "me/my-sae") -> dict[str, Any]:
    return hub.repositories["model", name].files("main")


def test_published_and_loaded_back(hub: Any, measured: Path) -> None:
    done = publish_sae(measured / "topk_k4", URL, license_name="mit")
    assert set(done.files) == FILES and set(done.sent) == FILES
    repository = hub.repositories["model", "me/my-sae"]
    assert repository.private
    assert [title for _, title, _ in repository.commits] == ["initial commit", "saecache: 7 files"]
    ours, theirs = load_sae(measured / "topk_k4"), load_sae(URL)
    x = torch.randn(40, 24)
    assert torch.equal(ours.encode(x), theirs.encode(x)) and theirs.cfg == ours.cfg
    assert publish_sae(measured / "topk_k4", URL, license_name="mit").sent == []
    assert len(repository.commits) == 2


def test_the_card(hub: Any, measured: Path, tmp_path: Path) -> None:
    publish_sae(measured / "topk_k4", URL, license_name="mit")
    text = files_of(hub)["README.md"].content.decode()
    (tmp_path / "README.md").write_text(text)
    card = ModelCard.load(tmp_path / "README.md")
    metadata = card.data.to_dict()
    assert metadata["license"] == "mit" and metadata["library_name"] == "saecache"
    assert (
        metadata["base_model"] == "toy"
        and "sparse-autoencoder" in metadata["tags"]
        and "topk" in metadata["tags"]
    )
    result = next(sae for sae in read_results(measured / "results.json").saes if sae.name == "topk_k4")
    assert f"| FVU | {result.normalized.fvu:.4f} |" in text
    assert f"| L0 | {result.codes.l0:.1f} |" in text
    assert load_sae(measured / "topk_k4").cfg.cache["fingerprint"] in text
    assert f'saecache.load_sae("{URL}")' in text
    recipe = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert recipe is not None
    assert yaml.safe_load(recipe[1]) == yaml.safe_load((measured / "config.yaml").read_text())


def test_the_plot_shows_this_sae_and_the_others(hub: Any, measured: Path) -> None:
    publish_sae(measured / "topk_k4", URL)
    root = ElementTree.fromstring(files_of(hub)["results.svg"].content)
    svg = "{http://www.w3.org/2000/svg}"
    circles = {c.get("class"): c.findtext(f"{svg}title") for c in root.iter(f"{svg}circle")}
    results = {sae.name: sae for sae in read_results(measured / "results.json").saes}
    assert circles["this"] == f"topk_k4: L0 4.0, FVU {results['topk_k4'].normalized.fvu:.4f}"
    assert circles["other"].startswith("topk_k6: L0 6.0")
    line = next(root.iter(f"{svg}polyline")).get("points", "")
    assert len(line.split()) == len(results["topk_k4"].density.rank)
    assert "script" not in files_of(hub)["results.svg"].content.decode()


def test_the_results_hold_this_sae_and_no_text_of_others(hub: Any, measured: Path, tmp_path: Path) -> None:
    publish_sae(measured / "topk_k4", URL)
    blob = files_of(hub)["results.json"]
    (tmp_path / "results.json").write_bytes(hub.store[blob.sha256] if blob.sha256 else blob.content)
    results = read_results(tmp_path / "results.json")
    assert [sae.name for sae in results.saes] == ["topk_k4"]
    assert results.saes[0].latents == [] and results.cache.path == ""


def test_any_bucket_and_any_revision(hub: Any, measured: Path, tmp_path: Path) -> None:
    bucket = (tmp_path / "bucket").as_uri()
    publish_sae(measured / "topk_k4", f"{bucket}/sae")
    assert load_sae(f"{bucket}/sae").cfg.name == "topk_k4"
    publish_sae(measured / "topk_k4", URL)
    there = hub.repositories["model", "me/my-sae"]
    first = there.branches["main"]
    publish_sae(measured / "topk_k6", URL, replace=True)
    publish_sae(measured / "topk_k6", f"{URL}/layer3")
    assert load_sae(URL).cfg.name == load_sae(f"{URL}/layer3").cfg.name == "topk_k6"
    assert load_sae(f"{URL}@{first}").cfg.name == "topk_k4"


def test_commands_take_a_published_sae(hub: Any, measured: Path, tmp_path: Path) -> None:
    """By its URL, also together with one of a folder; it is called by the last part of its URL."""
    publish_sae(measured / "topk_k4", URL)
    publish_sae(measured / "topk_k6", f"{URL}/layer3")
    results, cache = tmp_path / "results.json", measured.parent / "cache"
    places = [f"{URL}@main", f"{URL}/layer3", measured / "topk_k4"]
    for given, names in (
        (places[:1], {"my-sae": f"{URL}@main"}),
        (places, {"my-sae": f"{URL}@main", "layer3": f"{URL}/layer3", "topk_k4": None}),
    ):
        command = ["evaluate", *given, "--cache", cache, "--no-model", "--out", results]
        done = CliRunner().invoke(app, [*map(str, command)])
        assert done.exit_code == 0, done.output
        saes = {sae.name: sae for sae in read_results(results).saes}
        assert saes.keys() == names.keys()
        assert all(saes[name].sae_dir == url for name, url in names.items() if url)
        assert saes["my-sae"].weights_sha256 == load_sae(measured / "topk_k4").weights_sha256()
    command = ["export", URL, "--format", "saelens", "--cache", cache, "--out", tmp_path / "exported"]
    done = CliRunner().invoke(app, [*map(str, command)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "exported" / "sae_weights.safetensors").is_file()
    command = ["evaluate", URL, "--cache", cache, "--no-model"]
    done = CliRunner().invoke(app, [*map(str, command)])
    assert done.exit_code == 2 and f"{URL} is a URL: say where the results go, with --out" in done.stderr


def test_another_sae_is_not_replaced_by_accident(hub: Any, measured: Path) -> None:
    publish_sae(measured / "topk_k4", URL)
    commits = len(hub.repositories["model", "me/my-sae"].commits)
    with pytest.raises(UsageError, match=r"holds another SAE .*--replace"):
        publish_sae(measured / "topk_k6", URL)
    assert len(hub.repositories["model", "me/my-sae"].commits) == commits


def test_a_publish_that_was_stopped_before_its_last_file_ends(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had replaced another SAE: what lists the files was still that of the other one."""
    url, upload = f"{(tmp_path / 'bucket').as_uri()}/sae", RemoteFolder.upload
    publish_sae(measured / "topk_k4", url)

    def stop(self: RemoteFolder, path: Path, key: str, **settings: Any) -> Any:
        if key == MANIFEST_NAME:
            raise KeyboardInterrupt
        return upload(self, path, key, **settings)

    with monkeypatch.context() as stopped:
        stopped.setattr(RemoteFolder, "upload", stop)
        with pytest.raises(KeyboardInterrupt):
            publish_sae(measured / "topk_k6", url, replace=True)
    assert publish_sae(measured / "topk_k6", url).sent == [MANIFEST_NAME]
    assert load_sae(url).cfg.name == "topk_k6"
    assert publish_sae(measured / "topk_k6", url).sent == []


def test_a_damaged_list_of_files_can_be_replaced(measured: Path, tmp_path: Path) -> None:
    url = f"{(tmp_path / 'bucket').as_uri()}/sae"
    publish_sae(measured / "topk_k4", url)
    open_remote_folder(url).put(MANIFEST_NAME, b"{")
    with pytest.raises(UsageError, match=r"no list of the files of an SAE: .*--replace"):
        publish_sae(measured / "topk_k4", url)
    assert publish_sae(measured / "topk_k4", url, replace=True).sent == [MANIFEST_NAME]
    assert load_sae(url).cfg.name == "topk_k4"


@pytest.mark.parametrize("place", ["a\0b", "x" * 100_000, "loop/sae"])
def test_a_place_of_an_sae_that_cannot_be(place: str, runs: Path, tmp_path: Path) -> None:
    url = f"{(tmp_path / 'bucket').as_uri()}/sae"
    (runs / "loop").symlink_to("loop")
    values = json.loads((runs / "results.json").read_text())
    other = next(sae for sae in values["saes"] if sae["name"] != "topk_k4")
    values["saes"].sort(key=lambda sae: sae is not other)
    other["sae_dir"] = place
    (runs / "results.json").write_text(json.dumps(values))
    assert publish_sae(runs / "topk_k4", url).name == "topk_k4"
    with pytest.raises(UsageError, match=r"has no results of .*: measure again") as caught:
        publish_sae(runs / "topk_k6", url, replace=True)
    assert len(str(caught.value)) < 10_000


@pytest.mark.parametrize("l0", [1.7e308, -1.0, 5e-324])
def test_results_that_cannot_be_drawn(l0: float, runs: Path, tmp_path: Path) -> None:
    values = json.loads((runs / "results.json").read_text())
    for sae in values["saes"]:
        sae["codes"]["l0"] = l0
    (runs / "results.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match=r"a number that cannot be drawn .*--without-results"):
        publish_sae(runs / "topk_k4", f"{(tmp_path / 'bucket').as_uri()}/sae")


def test_a_card_that_was_edited_there_stays(hub: Any, measured: Path) -> None:
    publish_sae(measured / "topk_k4", URL)
    open_remote_folder(URL).put("README.md", b"mine\n")
    done = publish_sae(measured / "topk_k4", URL, license_name="mit")
    assert "README.md" not in done.sent and any("stays: --replace" in note for note in done.notes)
    assert files_of(hub)["README.md"].content == b"mine\n"
    publish_sae(measured / "topk_k4", URL, license_name="mit", replace=True)
    assert b"license: mit" in files_of(hub)["README.md"].content


@pytest.mark.parametrize("rank", [0, -3])
def test_a_rank_that_no_latent_has_is_not_drawn(runs: Path, tmp_path: Path, rank: int) -> None:
    values = json.loads((runs / "results.json").read_text())
    for sae in values["saes"]:
        sae["density"]["rank"][0] = rank
    (runs / "results.json").write_text(json.dumps(values))
    publish_sae(runs / "topk_k4", URL, preview=tmp_path / "preview")
    assert "<polyline" in (tmp_path / "preview" / "results.svg").read_text()


def test_results_are_wanted(hub: Any, runs: Path) -> None:
    (runs / "results.json").rename(runs / "elsewhere.json")
    with pytest.raises(UsageError, match=r"no results at .*results\.json: measure first.*--without-results"):
        publish_sae(runs / "topk_k4", URL)
    assert hub.repositories == {}
    done = publish_sae(runs / "topk_k4", URL, results=runs / "elsewhere.json")
    assert "results.json" in done.files
    done = publish_sae(runs / "topk_k6", "hf://me/other", without_results=True)
    assert "results.json" not in done.files
    assert "No results were published" in files_of(hub, "me/other")["README.md"].content.decode()


def test_results_of_another_training_are_refused(hub: Any, runs: Path) -> None:
    config = json.loads((runs / "topk_k4" / "sae" / "cfg.json").read_text())
    config["training"]["step"] += 1
    (runs / "topk_k4" / "sae" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"was measured before .* was trained: measure again"):
        publish_sae(runs / "topk_k4", URL)


def test_results_of_other_weights_are_refused(hub: Any, runs: Path) -> None:
    sae = load_sae(runs / "topk_k4")
    sae.b_enc[0] += 1
    sae.save(runs / "topk_k4" / "sae")
    with pytest.raises(UsageError, match=r"was measured on other weights than .* has now: measure again"):
        publish_sae(runs / "topk_k4", URL)


@pytest.mark.parametrize("url", ["hf://datasets/me/x", "runs/here"])
def test_where_an_sae_cannot_go(measured: Path, url: str) -> None:
    with pytest.raises(UsageError, match="published as a model: expected hf://ORG/NAME"):
        publish_sae(measured / "topk_k4", url)


def test_the_command(hub: Any, measured: Path, tmp_path: Path) -> None:
    def invoke(*words: str) -> Any:
        done = CliRunner().invoke(app, ["publish", *words])
        assert done.exit_code == 0, done.output
        return done

    with pytest.MonkeyPatch.context() as offline:  # a preview asks nobody
        offline.setenv("HF_HUB_OFFLINE", "1")
        preview = invoke(str(measured / "topk_k4"), URL, "--preview", str(tmp_path / "preview"))
    assert hub.repositories == {} and {p.name for p in (tmp_path / "preview").iterdir()} == FILES
    assert "states no licence" in preview.stderr
    shown = json.loads(invoke(str(measured / "topk_k4"), URL, "--license", "mit", "--json").stdout)
    assert shown["url"] == URL and set(shown["sent"]) == FILES and shown["notes"] == []
    assert "nothing: everything is there" in invoke(str(measured / "topk_k4"), URL, "--license", "mit").stdout


# ---- loading


def test_a_download_is_checked_and_kept(hub: Any, measured: Path) -> None:
    publish_sae(measured / "topk_k4", URL)
    folder = fetch_sae(URL)
    weights = folder / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    assert fetch_sae(URL) == folder and weights.stat().st_mtime_ns == before
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert fetch_sae(URL) == folder and weights.read_bytes() == content


def test_wrong_bytes_are_refused(hub: Any, measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_sae(measured / "topk_k4", URL)
    oid = files_of(hub)["weights.safetensors"].sha256
    content = hub.store[oid]
    hub.store[oid] = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(CorruptCacheError, match=r"weights\.safetensors is damaged: sha256"):
        load_sae(URL)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value | {"format_version": 2},
        lambda value: value | {"files": {}},
        lambda value: {"files": 3},
        lambda value: value | {"files": {"cfg.json": {"size": -1, "sha256": "0" * 64}}},
    ],
)
def test_a_foreign_manifest_is_refused(
    hub: Any, measured: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    publish_sae(measured / "topk_k4", URL)
    folder = open_remote_folder(URL)
    value = json.loads(folder.get("saecache.json", 1 << 20))
    folder.put("saecache.json", json.dumps(change(value)).encode())
    with pytest.raises((UsageError, CorruptCacheError), match=r"update saecache|no list of the files"):
        load_sae(URL)


def test_an_sae_that_was_copied_by_hand_loads(hub: Any, measured: Path) -> None:
    hub.make("model", "me/copied")
    folder = open_remote_folder("hf://me/copied")
    for name in ("cfg.json", "weights.safetensors"):
        folder.put(name, (measured / "topk_k4" / "sae" / name).read_bytes())
    assert load_sae("hf://me/copied").cfg.name == "topk_k4"
    folder.delete(["weights.safetensors"])
    with pytest.raises(UsageError, match=r"no SAE at hf://me/copied: it has no weights\.safetensors"):
        fetch_sae("hf://me/copied")


def test_a_split_of_others_cannot_break_the_card(runs: Path, tmp_path: Path) -> None:
    values = json.loads((runs / "results.json").read_text())
    values["cache"]["split"] = "train\n\n# Other\n<img src=x>"
    (runs / "results.json").write_text(json.dumps(values))
    publish_sae(runs / "topk_k4", URL, preview=tmp_path / "preview")
    text = (tmp_path / "preview" / "README.md").read_text()
    assert "\n# Other" not in text and "<img" not in text.replace("\\<img", "")


def test_names_cannot_break_the_card(measured: Path) -> None:
    cfg = load_sae(measured / "topk_k4").cfg
    hostile = "a`b|c\n---\n# x <script>"
    cfg = cfg.model_copy(update={"hook": hostile, "cache": {**cfg.cache, "model_name": hostile}})
    text = make_card(cfg, URL, result=None, results=None, recipe="```\nx: 1\n", version="1")
    head, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert "base_model" not in yaml.safe_load(head)
    assert "\n---\n" not in body and body.count("```") == 4
