"""Two "nodes": network namespaces that reach each other by a cable alone. It needs root, and Linux."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from saecache.harvest import HarvestConfig
from saecache.harvest import run as harvest
from saecache.store.reading.reader import ActivationCache

from ..killing import DEADLINE_SECONDS
from .processes import Ended, start_each, wait
from .test_harvest import bytes_at, contents
from .test_rows import ROWS, some_by_two
from .test_training import PROGRAM, SOME, assert_same_run, cache, config_of, ends

__all__ = ["cache", "some_by_two"]  # fixtures

NAMESPACES = Path("/run/netns")  # where the command ip keeps them
ADDRESSES = "10.213.77.1", "10.213.77.2"
PER_NODE = 2


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=DEADLINE_SECONDS)


@pytest.fixture
def nodes() -> Iterator[list[tuple[str, str]]]:
    """The name of each namespace, and of its end of the cable."""
    if shutil.which("ip") is None:
        pytest.skip("the command ip is not installed")
    made = [(f"saecache{os.getpid()}{end}", f"sc{os.getpid()}{end}") for end in "ab"]
    try:
        try:
            for namespace, _ in made:
                ip("netns", "add", namespace)
            ip("link", "add", made[0][1], "type", "veth", "peer", "name", made[1][1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace can be made here: {error.stderr!r}")
        for (namespace, cable), address in zip(made, ADDRESSES, strict=True):
            ip("link", "set", cable, "netns", namespace)
            ip("-n", namespace, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", namespace, "link", "set", cable, "up")
            ip("-n", namespace, "link", "set", "lo", "up")
        yield made
    finally:
        for namespace, _ in made:
            with suppress(subprocess.CalledProcessError):
                ip("netns", "delete", namespace)


@pytest.mark.slow
def test_two_nodes_train_what_one_does(
    nodes: list[tuple[str, str]], cache: ActivationCache, some_by_two: Path, tmp_path: Path
) -> None:
    """Latents are shared in a node, rows across the nodes."""
    out = tmp_path / "run"
    config = config_of(*SOME, calibration={}, parallel=ROWS)
    arguments = [PROGRAM, str(cache.path), str(out), config.model_dump_json(), "{}"]
    ended = run_on(nodes, lambda _: arguments, tmp_path)
    assert ends([json.loads(one.output) for one in ended]) == ["well"] * len(ended)
    assert_same_run(out, some_by_two)


@pytest.mark.slow
def test_two_nodes_harvest_what_one_process_does(
    nodes: list[tuple[str, str]], make_config: Callable[..., HarvestConfig], tmp_path: Path
) -> None:
    """Into a bucket, for which a folder stands here; each node has scratch of its own."""
    config = make_config(
        num_tokens=6000, commit_seconds=0.0, tokens={"context": 16, "max_document_tokens": 99}
    )
    (tmp_path / "harvest.json").write_text(config.model_dump_json())
    alone = harvest(config, tmp_path / "alone")
    (tmp_path / "bucket").mkdir()
    url = f"file://{tmp_path}/bucket/cache"

    def command(node: int) -> list[str]:
        arguments = ["-m", "saecache", "harvest", str(tmp_path / "harvest.json"), "--out", url]
        return [*arguments, "--scratch", str(tmp_path / f"node{node}" / "scratch")]

    ended = run_on(nodes, command, tmp_path)
    assert "share no scratch folder" in ended[0].errors
    assert bytes_at(url) == contents(Path(alone.path))


def run_on(nodes: list[tuple[str, str]], arguments: Callable[[int], list[str]], folder: Path) -> list[Ended]:
    """Run ``python <arguments of the node>`` in the processes of all nodes; they must all succeed."""
    ranks = range(len(nodes) * PER_NODE)
    own = [
        {
            "LOCAL_RANK": str(rank % PER_NODE),
            "LOCAL_WORLD_SIZE": str(PER_NODE),
            "MASTER_ADDR": ADDRESSES[0],
            "GLOO_SOCKET_IFNAME": nodes[rank // PER_NODE][1],
        }
        for rank in ranks
    ]
    namespaces = [NAMESPACES / nodes[rank // PER_NODE][0] for rank in ranks]
    each = [arguments(rank // PER_NODE) for rank in ranks]
    ended = wait(start_each(each, folder, own, namespaces))
    assert [one.status for one in ended] == [0] * len(ended), "\n".join(one.errors[-1500:] for one in ended)
    return ended
