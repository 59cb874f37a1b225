"""Harvests that go straight into a bucket: the same bytes, little room here, and any end continues."""

import itertools
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from saecache.harvest import HarvestConfig
from saecache.harvest.model.conditions import forward_conditions
from saecache.harvest.runner import run
from saecache.store import CorruptCacheError, SaecacheError, StorageConfig, UsageError, open_cache
from saecache.store.remote import ObjectInfo, Patience, RemoteFolder, open_remote_folder
from saecache.store.remote.cache_objects import HARVEST_CLAIM
from saecache.store.remote.claims import Claim
from saecache.store.remote.delivery import UPLOADS_AT_ONCE, WAITING_AT_MOST, BucketDelivery
from saecache.store.remote.places.failures import AccessError, RemoteChangedError
from saecache.store.remote.removal import Removal

from ...killing import DEADLINE_SECONDS, killed_runs
from ...store.remote.proxy import Proxy
from ...store.remote.server import READER_KEY, READER_SECRET

MakeConfig = Callable[..., HarvestConfig]
ROUNDS = 50 if os.environ.get("SAECACHE_LONG_TESTS") else 5
NUM_TOKENS = 6000


@pytest.fixture(scope="module")
def config(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> HarvestConfig:
    folder = tmp_path_factory.mktemp("text")
    lines = (json.dumps({"text": f"document {i} says " + "so it goes, " * (i % 60)}) for i in range(120))
    (folder / "a.jsonl").write_text("\n".join(lines))
    return make_config(
        text={"kind": "files", "paths": str(folder)},
        num_tokens=NUM_TOKENS,
        batch_size=32,
        commit_seconds=0.0,
        storage={"chunk_rows": 64, "shard_bytes": 1 << 15},
    )


@pytest.fixture(scope="module")
def local(config: HarvestConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same harvest into a folder."""
    return Path(run(config, tmp_path_factory.mktemp("local") / "cache").path)


def contents(folder: Path) -> dict[str, bytes]:
    files = ((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*") if file.is_file())
    return {name: file.read_bytes() for name, file in files if not name.startswith("provenance/")}


def objects(location: RemoteFolder) -> dict[str, bytes]:
    found = {info.key: location.get(info.key, 1 << 24) for info in location.objects()}
    assert found.pop("provenance/zarr.json", b"{")
    return found


@pytest.fixture
def url(team: str) -> str:
    return f"{team}/cache"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Defaults are below the working directory and the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAECACHE_CACHE_DIR", str(tmp_path / "downloads"))
    yield


def test_the_bytes_are_those_of_a_local_harvest(
    config: HarvestConfig, local: Path, url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(config, url)
    assert (result.path, result.reused) == (url, False)
    assert objects(open_remote_folder(url)) == contents(local)
    assert not list(Path("caches").iterdir()), "the scratch is gone"
    told = capfd.readouterr().err
    assert f"at {url}" in told
    assert "--scratch must name a disk that both share" in told
    remote = open_cache(url)
    for hook in remote.hooks:
        rows = range(len(remote))
        assert torch.equal(remote.rows(hook, rows), open_cache(local).rows(hook, rows))
    assert remote.provenance["harvest_seconds"] > 0
    again = run(config, url)
    assert (again.path, again.reused, again.manifest) == (url, True, result.manifest)


def test_little_is_here_at_a_time(
    config: HarvestConfig, local: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the spill and the norms, no more shards than are on their way."""
    scratch, seen = tmp_path / "scratch", []
    take = BucketDelivery.take

    def watched(self: BucketDelivery, file: object, *, keep: bool) -> None:
        take(self, file, keep=keep)  # type: ignore[arg-type]
        shards = [path for path in scratch.rglob("c/**/*") if path.is_file() and "/norm/" not in str(path)]
        seen.append(len(shards))

    monkeypatch.setattr(BucketDelivery, "take", watched)
    run(config, url, scratch=scratch)
    assert len(seen) > 5 * (WAITING_AT_MOST + UPLOADS_AT_ONCE)
    assert max(seen) <= WAITING_AT_MOST + UPLOADS_AT_ONCE + 3
    assert objects(open_remote_folder(url)) == contents(local)
    assert not scratch.exists()


def test_faults_that_pass_do_not_show(
    config: HarvestConfig,
    local: Path,
    url: str,
    proxy: Proxy,
) -> None:
    for kind, settings in (
        ("status", {"status": 503, "code": "SlowDown", "times": 5}),
        ("status", {"status": 500, "times": 5, "skip": 20}),
        ("reset", {"after": 0, "times": 3, "skip": 5}),
        ("lost_answer", {"times": 5, "skip": 30}),
        ("flip_request", {"times": 3, "after": 900, "skip": 40}),
        ("etag", {"times": 9, "skip": 50}),
    ):
        proxy.add(kind, method="PUT", path="/c/[0-9]", **settings)
    run(config, url)
    assert all(fault.met for fault in proxy.faults)
    assert objects(open_remote_folder(url)) == contents(local)


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (500, "InternalError", SaecacheError, "kept failing"),
        (403, "AccessDenied", AccessError, "not allowed"),
        (400, "ExpiredToken", AccessError, "have expired"),
    ],
)
def test_faults_that_stay_are_told_and_nothing_is_lost(
    config: HarvestConfig,
    local: Path,
    url: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    error: type[Exception],
    message: str,
) -> None:
    """What is done stays done: the second run reads no text, and brings only what is missing."""
    quick = Patience(retry_seconds=1, first_retry_seconds=1, max_attempts=2)
    monkeypatch.setattr("saecache.store.remote.places.by_url.Patience", lambda: quick)
    proxy.add("status", method="PUT", path="mlp_out.2/activations/c/3", status=status, code=code, times=9999)
    with pytest.raises(error, match=message):
        run(config, url)
    assert open_remote_folder(url).head("zarr.json") is None
    proxy.clear()
    monkeypatch.setattr("saecache.harvest.job.reading.token_batches", lambda *_: pytest.fail("text was read"))
    run(config, url)
    assert objects(open_remote_folder(url)) == contents(local)
    put = [seen.path for seen in proxy.seen if seen.method == "PUT" and "/token/c/" in seen.path]
    assert not put, "shards that had been brought are not brought again"


def test_no_right_to_write_is_said_before_the_model_runs(
    config: HarvestConfig, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
    monkeypatch.setattr(
        "saecache.harvest.job.phases.measure_first_block", lambda *_: pytest.fail("the model ran")
    )
    with pytest.raises(AccessError, match="not allowed"):
        run(config, url)
    assert not Path("caches").exists()


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "other bytes of the same size"])
def test_an_object_that_changed_is_written_again(
    config: HarvestConfig, local: Path, url: str, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """A harvest of the same fingerprint on another machine may bring other bytes of the same sizes."""
    location, shard = open_remote_folder(url), "rows/mlp_out.2/activations/c/1/0"
    upload = RemoteFolder.upload

    def changing(self: RemoteFolder, path: Path, key: str, **settings: Any) -> ObjectInfo:
        if key == "provenance/zarr.json" and replaced:
            location.put(shard, bytes((local / shard).stat().st_size))
        elif key == "provenance/zarr.json":
            location.delete([shard])
        return upload(self, path, key, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(RemoteFolder, "upload", changing)
        with pytest.raises(SaecacheError, match=f"{shard} was removed or replaced"):
            run(config, url)
    assert location.head("zarr.json") is None
    run(config, url)
    assert objects(location) == contents(local)


def test_an_upload_that_is_late_is_not_begun_again(
    config: HarvestConfig, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second upload of a shard found that the first had removed it from the scratch folder."""
    config = config.model_copy(update={"storage": StorageConfig(chunk_rows=64)})  # few files
    local = run(config, tmp_path / "local").path
    finishing, uploads = threading.Event(), Counter[str]()
    finish, upload = BucketDelivery.finish, RemoteFolder.upload

    def finished(self: BucketDelivery) -> None:
        finishing.set()
        finish(self)

    def late(self: RemoteFolder, path: Path, key: str, **settings: Any) -> ObjectInfo:
        uploads[key] += 1
        if key.endswith("resid_post.1/second_moment/c/0"):
            assert finishing.wait(DEADLINE_SECONDS)
            time.sleep(0.2)
        return upload(self, path, key, **settings)

    monkeypatch.setattr(BucketDelivery, "finish", finished)
    monkeypatch.setattr(RemoteFolder, "upload", late)
    run(config, url)
    assert set(uploads.values()) == {1}
    assert objects(open_remote_folder(url)) == contents(Path(local))


def test_removed_while_it_is_harvested(
    config: HarvestConfig, local: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``rm`` frees the place; the harvest says so, and the same command brings all of it again."""
    finish = BucketDelivery.finish

    def removed_before(self: BucketDelivery) -> None:
        Removal(url).run()
        finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(BucketDelivery, "finish", removed_before)
        with pytest.raises(RemoteChangedError, match="was removed or replaced"):
            run(config, url)
    assert open_remote_folder(url).head("zarr.json") is None
    run(config, url)
    assert objects(open_remote_folder(url)) == contents(local)


STOPS = {  # where a harvest is stopped, as by a kill: method and path of the first request that fails
    "a shard": {"method": "PUT", "path": "mlp_out.2/activations/c/3"},
    "metadata": {"method": "PUT", "path": "/cache/zarr.json|tokens/zarr.json"},
    "provenance": {"method": "PUT", "path": "provenance"},
    "the last listing": {"method": "GET", "path": "list-type", "skip": 3},
    "the manifest": {"method": "PUT", "path": "/cache/zarr.json"},
    "reading the manifest back": {"method": "GET", "path": "/cache/zarr.json", "skip": 3},
    "the end of the claim": {"method": "", "path": "delete|harvest.json", "skip": 3},
}


@pytest.mark.parametrize("stop", STOPS.values(), ids=STOPS)
def test_stopped_late_then_removed_then_harvested_again(
    config: HarvestConfig, local: Path, url: str, proxy: Proxy, tmp_path: Path, stop: dict[str, Any]
) -> None:
    """The scratch held a manifest of shards that had gone with the place; one more run was needed."""
    scratch = tmp_path / "scratch"
    met = proxy.add("status", status=403, code="AccessDenied", times=9999, **stop)
    with pytest.raises(AccessError):
        run(config, url, scratch=scratch)
    assert met.met
    proxy.clear()
    Removal(url).run()
    assert open_remote_folder(url).objects() == []
    run(config, url, scratch=scratch)
    assert objects(open_remote_folder(url)) == contents(local)
    assert not scratch.exists()


@pytest.mark.parametrize("number", [*range(1, 6), 9, 14, 20, 30, 45, 70])
def test_stopped_while_it_tidies_up_then_removed_then_harvested_again(
    config: HarvestConfig, local: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The scratch was of no use, and not seen to be: a spill without its end, or nothing that it knew."""
    scratch, count = tmp_path / "scratch", itertools.count(1)
    finish = BucketDelivery.finish

    def finished(self: BucketDelivery) -> None:
        finish(self)
        for name in ("unlink", "rmdir"):
            patch.setattr(os, name, stopping(getattr(os, name)))

    def stopping(remove: Callable[..., None]) -> Callable[..., None]:
        def stopped(*arguments: Any, **settings: Any) -> None:
            if next(count) >= number:
                raise InterruptedError("killed here")
            remove(*arguments, **settings)

        return stopped

    with monkeypatch.context() as patch:
        patch.setattr(BucketDelivery, "finish", finished)
        with pytest.raises((InterruptedError, SaecacheError), match="killed here"):
            run(config, url, scratch=scratch)
    Removal(url).run()
    run(config, url, scratch=scratch)
    assert objects(open_remote_folder(url)) == contents(local)
    assert not scratch.exists()


def test_places_that_are_taken(config: HarvestConfig, url: str) -> None:
    location = open_remote_folder(url)
    location.put("notes.txt", b"mine")
    with pytest.raises(UsageError, match="holds other things"):
        run(config, url)
    location.delete(["notes.txt"])
    location.put(HARVEST_CLAIM, json.dumps({"fingerprint": "0" * 64}).encode())
    with pytest.raises(UsageError, match="taken by another harvest: it holds another cache"):
        run(config, url)
    assert json.loads(location.get(HARVEST_CLAIM, 1000))["fingerprint"] == "0" * 64
    location.delete([HARVEST_CLAIM])
    run(config, url)
    with pytest.raises(UsageError, match=f"{url} holds a finished cache of another identity"):
        run(config.model_copy(update={"seed": 5}), url)
    with pytest.raises(UsageError, match="--scratch is for harvests into a bucket"):
        run(config, Path("folder"), scratch=Path("scratch"))


def test_a_harvest_of_the_same_cache_on_other_hardware_is_kept_out(
    config: HarvestConfig, url: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both had the same fingerprint, so the slower one replaced shards of the finished cache by its own."""
    with monkeypatch.context() as patch:
        patch.setattr(BucketDelivery, "finish", lambda _: pytest.fail("stopped here"))
        with pytest.raises(pytest.fail.Exception, match="stopped here"):
            run(config, url, scratch=Path("here"))
    elsewhere = forward_conditions

    def other_processor(*arguments: Any) -> dict[str, Any]:
        return elsewhere(*arguments) | {"processor": "another one"}

    with monkeypatch.context() as patch:
        patch.setattr("saecache.harvest.job.batch_size.forward_conditions", other_processor)
        with pytest.raises(
            UsageError, match=r"other conditions \(.*; here: .*processor another one.*cache rm"
        ):
            run(config, url, scratch=Path("there"))
    run(config, url, scratch=Path("here"))
    assert objects(open_remote_folder(url)) == contents(local)


@pytest.mark.parametrize("conditions", [3, ["x"], "two\nlines", "x" * 1001])
def test_a_claim_with_hostile_conditions_is_refused(conditions: Any, config: HarvestConfig, url: str) -> None:
    claim = {"fingerprint": "0" * 64, "conditions": conditions}
    open_remote_folder(url).put(HARVEST_CLAIM, json.dumps(claim).encode())
    with pytest.raises(CorruptCacheError, match="expected the claim of a harvest"):
        run(config, url)


def test_scratch_of_a_cache_that_is_there_or_was_removed(
    config: HarvestConfig, local: Path, url: str
) -> None:
    """A run that died between its last two steps leaves a folder that holds a manifest and no shards."""
    scratch = Path("scratch")
    run(config, url)
    for _ in range(2):
        scratch.mkdir()
        (scratch / "zarr.json").write_bytes((local / "zarr.json").read_bytes())
        run(config, url, scratch=scratch)
        assert not scratch.exists()
        location = open_remote_folder(url)
        assert objects(location) == contents(local)
        location.delete([info.key for info in location.objects()])


def test_a_harvest_that_was_stopped_before_its_claim_went(
    config: HarvestConfig, local: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was there, so the next run said "finished" and left the claim for ever."""
    with monkeypatch.context() as patch:
        patch.setattr(Claim, "release", lambda _: pytest.fail("stopped here"))
        with pytest.raises(pytest.fail.Exception, match="stopped here"):
            run(config, url)
    location = open_remote_folder(url)
    assert location.head(HARVEST_CLAIM) is not None
    assert run(config, url).reused
    assert objects(location) == contents(local)


def test_the_team_is_asked_first(
    config: HarvestConfig, url: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config, url)
    monkeypatch.setattr(
        "saecache.harvest.job.phases.measure_first_block", lambda *_: pytest.fail("the model ran")
    )
    prefix = url.rsplit("/", 1)[0]
    monkeypatch.setenv("SAECACHE_TEAM", f"{tmp_path}/nothing, {prefix}")
    (tmp_path / "nothing").mkdir()
    found = run(config, tmp_path / "out")
    assert (found.path, found.reused) == (url, True)
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv("SAECACHE_TEAM")
    found = run(config.model_copy(update={"team": (str(local.parent),)}), tmp_path / "out")
    assert (found.path, found.reused) == (local, True)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    forced = run(config.model_copy(update={"team": (str(local.parent),)}), tmp_path / "out", force=True)
    assert (forced.path, forced.reused) == (tmp_path / "out", False)
    other = run(config.model_copy(update={"team": (str(local.parent),), "seed": 9}), tmp_path / "other")
    assert not other.reused


def test_a_team_that_cannot_be_asked_is_said(config: HarvestConfig, team: str) -> None:
    nowhere = config.model_copy(update={"team": ("s3://no-such-bucket/x",)})
    with pytest.raises(AccessError, match=r"asking the team.*no such bucket"):
        run(nowhere, "out")
    assert not Path("out").exists()


HARVEST = """
import os, sys
from pathlib import Path
import transformers.models.gpt_neox.modeling_gpt_neox
from saecache.harvest import HarvestConfig
from saecache.harvest.model.conditions import forward_conditions
from saecache.harvest.runner import run

config = HarvestConfig.model_validate_json(sys.argv[1])

def work(url, scratch, pid):
    Path(pid).write_text(str(os.getpid()))
    run(config, url, scratch=Path(scratch))
"""


def test_kill_9_at_random_requests(
    config: HarvestConfig, local: Path, url: str, proxy: Proxy, tmp_path: Path
) -> None:
    """Killed again and again; then the same call ends with the same bytes."""
    choose, scratch, pid = random.Random(0), tmp_path / "scratch", tmp_path / "pid"

    def die(_method: str, _path: str) -> None:
        # A request of the one before may come late, when the next has not begun, or is the one that is meant.
        if pid.exists() and (written := pid.read_text()) and next(requests) >= fatal:
            with suppress(ProcessLookupError):
                os.kill(int(written), signal.SIGKILL)

    with killed_runs(HARVEST, config.model_dump_json()) as run_killed:
        for number in range(ROUNDS):
            place = f"{url}{number}"
            for attempt in range(1 + number % 2):
                requests, fatal = itertools.count(1), choose.randrange(1, 150 if attempt == 0 else 8)
                proxy.before = die
                pid.unlink(missing_ok=True)
                status = run_killed(place, str(scratch), str(pid), seconds=DEADLINE_SECONDS)
                assert status == -signal.SIGKILL
            proxy.before = None
            run(config, place, scratch=scratch)
            assert objects(open_remote_folder(place)) == contents(local)
            assert not scratch.exists()
