"""A harvest continues in the phase its journal names, and only under conditions that give the same bits."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.common.errors import UsageError
from saecache.common.versions import package_version
from saecache.harvest import HarvestConfig, LanguageModel
from saecache.harvest.job import reading
from saecache.harvest.runner import run
from saecache.store import CacheWriter, open_cache
from saecache.store.derived import replay
from saecache.store.writing.journal import journal_path, read_journal

MakeConfig = Callable[..., HarvestConfig]
SINKS = {"selection": {"sink_ratio": 1.6}}


def digests(cache: Path) -> dict[str, str]:
    files = [p for p in cache.rglob("*") if p.is_file() and p.relative_to(cache).parts[0] != "provenance"]
    return {p.relative_to(cache).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def stopped_while_reading(config: HarvestConfig, path: Path) -> None:
    """A run that is interrupted while the model works on the second step."""

    class Stopping(reading.ActivationReader):
        steps = 0

        def rows(self, *arguments: Any) -> Any:
            Stopping.steps += 1
            if Stopping.steps > 1:
                raise KeyboardInterrupt
            return super().rows(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(reading, "ActivationReader", Stopping)
        run(config, path)


def stopped_while_finishing(config: HarvestConfig, path: Path, **settings: Any) -> None:
    def stopping(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CacheWriter, "finalize", stopping)
        run(config, path, **settings)


def edit_progress(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    journal = json.loads(journal_path(path).read_bytes())
    change(journal["progress"])
    journal_path(path).write_text(json.dumps(journal))


def as_version_0_1(progress: dict[str, Any]) -> None:
    for key in ("phase", "conditions", "extends", "energy"):
        progress.pop(key)


def of_type(config: HarvestConfig, dtype: str) -> HarvestConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})


def phase(path: Path) -> str:
    journal = read_journal(path)
    assert journal is not None
    return str(journal.progress["phase"])


@pytest.fixture(scope="module")
def config(make_config: MakeConfig) -> HarvestConfig:
    return make_config(num_tokens=3000, batch_size=32, **SINKS)


@pytest.fixture(scope="module")
def whole(config: HarvestConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(run(config, tmp_path_factory.mktemp("whole") / "cache").path)


@pytest.mark.parametrize("old", [False, True], ids=["", "journal of version 0.1"])
@pytest.mark.parametrize("stop", [stopped_while_reading, stopped_while_finishing])
def test_stopped_in_a_phase_and_continued(
    config: HarvestConfig, whole: Path, tmp_path: Path, stop: Callable[..., None], old: bool
) -> None:
    path = tmp_path / "cache"
    stop(config, path)
    assert phase(path) == stop.__name__.removeprefix("stopped_while_")
    if old:
        edit_progress(path, as_version_0_1)
    run(config, path)
    assert digests(path) == digests(whole)


def test_finishing_needs_no_model(
    config: HarvestConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cache"
    stopped_while_finishing(config, path)
    monkeypatch.setattr(LanguageModel, "from_files", lambda *_, **__: pytest.fail("the model was loaded"))
    run(config, path)
    assert digests(path) == digests(whole)


def test_the_phases_of_an_extension(
    make_config: MakeConfig, config: HarvestConfig, whole: Path, tmp_path: Path
) -> None:
    base = Path(run(make_config(num_tokens=1500, **SINKS), tmp_path / "base").path)
    path = tmp_path / "cache"

    def stopping(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(replay, "COMMIT_BYTES", 1)
        patch.setattr(CacheWriter, "write_records", stopping)
        run(config, path, extend=base)
    assert phase(path) == "copying"
    with pytest.raises(UsageError, match="begun with --extend"):
        run(config, path)
    stopped_while_finishing(config, path, extend=base)
    assert phase(path) == "finishing"
    run(config, path)  # the other cache is no longer needed
    assert digests(path) == digests(whole)
    assert open_cache(path).provenance["derived"]["by"] == "extend"


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("torch", r"torch: 1\.0 there, .* here \(pip install torch==1\.0\)"),
        ("transformers", r"transformers: 1\.0 there, .* \(pip install transformers==1\.0\)"),
        ("processor", r"processor: 1\.0 there, .* \(continue on such a machine\)"),
    ],
)
def test_other_conditions_are_refused(
    config: HarvestConfig, whole: Path, tmp_path: Path, name: str, way_out: str
) -> None:
    path = tmp_path / "cache"
    stopped_while_reading(config, path)
    right = read_journal(path)
    assert right is not None

    def change(progress: dict[str, Any]) -> None:
        progress["conditions"][name] = "1.0"

    edit_progress(path, change)
    with pytest.raises(UsageError, match=way_out) as caught:
        run(config, path)
    assert f"remove {path} to start again" in str(caught.value)
    edit_progress(path, lambda progress: progress["conditions"].update(right.progress["conditions"]))
    run(config, path)
    assert digests(path) == digests(whole)


def test_half_precision_of_version_0_1_is_not_continued(make_config: MakeConfig, tmp_path: Path) -> None:
    """Its rows depended on the number of threads, which its journal does not name."""
    config = of_type(make_config(num_tokens=3000, batch_size=32), "bfloat16")
    path = tmp_path / "cache"
    stopped_while_reading(config, path)
    edit_progress(path, as_version_0_1)
    with pytest.raises(UsageError, match=r"threads: not recorded by version 0\.1"):
        run(config, path)


def test_other_conditions_of_the_extended_cache_are_reported(
    make_config: MakeConfig, config: HarvestConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(run(make_config(num_tokens=1500, **SINKS), tmp_path / "base").path)
    metadata = base / "provenance" / "zarr.json"
    text = metadata.read_text()
    metadata.write_text(text.replace(f'"torch": "{package_version("torch")}"', '"torch": "1.0"'))
    assert metadata.read_text() != text
    run(config, tmp_path / "new", extend=base)
    assert "was harvested under other conditions" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_block_is_computed_by_one_thread(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """So the bytes do not depend on how many threads torch has."""
    config = of_type(make_config(num_tokens=3000), dtype)
    alone = digests(Path(run(config, tmp_path / "alone").path))
    threads: set[int] = set()
    honest = LanguageModel.read

    def read(self: LanguageModel, ids: Any, hooks: Any, receive: Any) -> None:
        threads.add(torch.get_num_threads())
        honest(self, ids, hooks, receive)

    monkeypatch.setattr(LanguageModel, "read", read)
    torch.set_num_threads(3)
    try:
        together = digests(Path(run(config, tmp_path / "together").path))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert threads == {1}
    assert together == alone
