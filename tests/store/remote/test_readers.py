"""zarr-python, xarray and tensorstore open the same bucket URL, without saecache."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from obstore.store import from_url
from zarr.storage import ObjectStore

from saecache.store import open_cache
from saecache.store.remote.push import Push

from .conftest import HOOK
from .server import BUCKET, S3Server


@pytest.fixture
def url(team: str, cache_path: Path) -> str:
    """Where the cache is; the environment is the same for all readers."""
    Push(cache_path, f"{team}/c").run()
    return f"{team}/c"


@pytest.fixture
def expected(cache_path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every array of the cache, by its path."""
    arrays = open_cache(cache_path)._arrays
    return {name: array[:] for name, array in arrays.items()}


def zarr_store(url: str) -> "ObjectStore[Any]":  # older zarr knows no [Any] when it runs
    return ObjectStore(from_url(url, client_options={"allow_http": True}), read_only=True)


def test_zarr(url: str, expected: dict[str, Any]) -> None:
    group = zarr.open_group(zarr_store(url), mode="r")
    assert {name for name, _ in group.members(max_depth=None) if name in expected} == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(group[name][:], values)
    assert group.attrs["saecache"]["format_version"] == 1


def test_xarray(url: str, expected: dict[str, Any]) -> None:
    with xarray.open_zarr(zarr_store(url), group=f"rows/{HOOK}", chunks=None) as dataset:
        assert dataset["activations"].dims == ("row", "dimension")
        for name in ("activations", "norm", "mean"):
            np.testing.assert_array_equal(dataset[name].values, expected[f"rows/{HOOK}/{name}"])


def test_tensorstore(url: str, s3_server: S3Server, expected: dict[str, Any]) -> None:
    key = url.removeprefix(f"s3://{BUCKET}/")
    for name, values in expected.items():
        kvstore = {
            "driver": "s3",
            "bucket": BUCKET,
            "path": f"{key}/{name}/",
            "endpoint": s3_server.endpoint,
            "aws_region": "us-east-1",
            "aws_credentials": {"type": "environment"},
        }
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
        np.testing.assert_array_equal(array.read().result(), values)
