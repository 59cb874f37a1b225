"""Two "nodes": network namespaces that reach each other by a cable alone. It needs root, and Linux."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from saecache.store.reading.reader import ActivationCache

from .processes import free_port, wait
from .test_rows import ROWS, some_by_two
from .test_training import PROGRAM, SOME, assert_same_run, cache, config_of, ends

__all__ = ["cache", "some_by_two"]  # fixtures

ADDRESSES = "10.213.77.1", "10.213.77.2"
PER_NODE = 2


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


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
    out, port = tmp_path / "run", str(free_port())
    config = config_of(*SOME, calibration={}, parallel=ROWS)
    processes = []
    for rank in range(len(nodes) * PER_NODE):
        namespace, cable = nodes[rank // PER_NODE]
        own = {
            "RANK": str(rank),
            "WORLD_SIZE": str(len(nodes) * PER_NODE),
            "LOCAL_RANK": str(rank % PER_NODE),
            "LOCAL_WORLD_SIZE": str(PER_NODE),
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": port,
            "GLOO_SOCKET_IFNAME": cable,
            "OMP_NUM_THREADS": "1",
        }
        arguments = [PROGRAM, str(cache.path), str(out), config.model_dump_json(), "{}"]
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", namespace, sys.executable, *arguments],
                cwd=tmp_path,
                env=os.environ | own,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    ended = wait(processes)
    assert [one.status for one in ended] == [0] * len(ended), "\n".join(one.errors[-1500:] for one in ended)
    assert ends([json.loads(one.output) for one in ended]) == ["well"] * len(ended)
    assert_same_run(out, some_by_two)
