"""The backend of a tensor, and how another one is asked for."""

import subprocess
import sys

import pytest
import torch

from saecache.common.errors import UsageError
from saecache.train.backends.choice import backend_of, load_backend, use_backend


def test_folders_are_found_by_their_presence() -> None:
    assert backend_of(torch.zeros(2)) is load_backend("compiled")
    assert backend_of(torch.zeros(2, dtype=torch.float64)) is load_backend("plain")


def test_a_block_runs_on_the_backend_it_names() -> None:
    with use_backend("plain"):
        assert backend_of(torch.zeros(2)) is load_backend("plain")
    assert backend_of(torch.zeros(2)) is load_backend("compiled")


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with (
        use_backend("abacus"),
        pytest.raises(UsageError, match=r"no backend 'abacus'.*known: compiled, plain"),
    ):
        backend_of(torch.zeros(2))


def test_the_environment_names_one_for_the_process() -> None:
    code = (
        "import torch; from saecache.train.backends.choice import backend_of;"
        "print(backend_of(torch.zeros(2)).__name__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"SAECACHE_BACKEND": "plain"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "saecache.train.backends.plain.backend"
