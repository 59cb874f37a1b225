"""The contract of everything that writes caches: its test inherits ``CacheContract``."""

import random
import shutil
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import zarr

from ..common.errors import CorruptCacheError, IncompleteCacheError, UsageError
from ..store import inspect_output, open_cache, verify_cache
from ..store.identity import fingerprint
from ..store.keys import is_heldout, row_keys
from ..store.reading.reader import ActivationCache
from ..store.remote.pull import Pull
from ..store.remote.push import Push
from .interruption import count_changes
from .known_rows import KnownRows, cache_bytes

_TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2, "int8": 2e-2}  # of the largest value


class CacheContract(ABC):
    """Tests of one writer. Subclasses are named ``Test...`` so that pytest finds them."""

    num_interruptions: ClassVar[int] = 8
    """At so many moments a writer is stopped and run again; 0 for one that cannot continue."""

    @abstractmethod
    def rows(self) -> KnownRows:
        """The rows that :meth:`write` writes."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write the whole cache to the folder ``path``, or continue what an interrupted call left there."""

    @pytest.fixture
    def written(self, tmp_path: Path) -> ActivationCache:
        self.write(tmp_path / "cache")
        return open_cache(tmp_path / "cache")

    # ---- what is written

    def test_a_new_cache_is_sound(self, written: ActivationCache) -> None:
        report = verify_cache(written.path)
        assert report.problems == []
        assert report.files == len(written.manifest.files) > 0
        assert report.bytes == sum(file.size for file in written.manifest.files)
        assert written.fingerprint == fingerprint(written.manifest.identity)
        assert inspect_output(Path(written.path)) == "complete"

    def test_the_same_rows_give_the_same_bytes(self, written: ActivationCache, tmp_path: Path) -> None:
        self.write(tmp_path / "again")
        assert cache_bytes(tmp_path / "again") == cache_bytes(Path(written.path))

    def test_every_row_is_stored_once_under_every_hook(self, written: ActivationCache) -> None:
        rows = self.rows()
        assert {hook: written.d_model(hook) for hook in written.hooks} == rows.hooks
        tokens = {split: written.token_index(split)[:].astype(np.int64) for split in ("train", "heldout")}
        assert np.array_equal(np.sort(np.concatenate([*tokens.values()])), np.flatnonzero(rows.keep))
        for hook in written.hooks:
            for split, index in tokens.items():
                got = written.rows(hook, np.arange(len(index)), split=split, normalization="none").numpy()
                expected = rows.raw(hook, index)
                largest = np.abs(expected).max(initial=0)
                error = np.abs(got - expected).max(initial=0)
                assert error <= _TOLERANCE[written.manifest.dtype] * largest, f"{hook}, {split}: {error}"

    def test_rows_are_in_the_order_of_their_keys(self, written: ActivationCache) -> None:
        keys = row_keys(written.manifest.identity["seed"], written.token_index()[:])
        assert bool((keys[1:] > keys[:-1]).all()), "training rows are not in the order of the shuffle"
        heldout = written.token_index("heldout")[:]
        assert bool((heldout[1:] > heldout[:-1]).all()), "held-out rows are not in reading order"

    def test_rows_are_found_in_their_documents(self, written: ActivationCache) -> None:
        rows, identity = self.rows(), written.manifest.identity
        for split in ("train", "heldout"):
            sequence, position, document = written.locate(
                np.arange(len(written.token_index(split)[:])), split
            )
            if written.manifest.tokens != "none":
                assert np.array_equal(document, rows.documents[sequence, position])
            heldout = is_heldout(identity["seed"], document, identity["heldout_fraction"])
            assert bool((heldout == (split == "heldout")).all()), "a document is on the wrong side"
        if written.manifest.tokens == "ids and documents":
            assert np.array_equal(written.tokens[:], rows.ids)

    def test_statistics_describe_the_training_rows(self, written: ActivationCache) -> None:
        rows = self.rows()
        for hook in written.hooks:
            statistics = written.statistics(hook)
            raw = rows.raw(hook, written.token_index()[:]).astype(np.float64)
            assert statistics.rows == len(raw) == len(written)
            assert np.allclose(statistics.mean, raw.mean(axis=0), rtol=1e-3, atol=1e-3)
            assert np.allclose(statistics.second_moment, (raw**2).mean(axis=0), rtol=1e-3)
            assert statistics.mean_square_norm == pytest.approx((raw**2).sum(axis=1).mean(), rel=1e-3)
            norms = np.sort(np.linalg.norm(raw - raw.mean(axis=1, keepdims=True), axis=1))
            assert statistics.norm_quantiles["0.5"] == pytest.approx(
                norms[round((len(norms) - 1) / 2)], rel=1e-5
            )
            assert statistics.norm_quantiles["1"] == pytest.approx(norms[-1], rel=1e-5)

    def test_zarr_python_reads_the_same(self, written: ActivationCache) -> None:
        token = np.asarray(zarr.open_array(f"{written.path}/rows/token", mode="r")[:])
        assert np.array_equal(token, written.token_index()[:])
        for hook in written.hooks:
            array = zarr.open_array(f"{written.path}/rows/{hook}/activations", mode="r")
            assert array.shape == (len(written), written.d_model(hook))

    # ---- damage and travel

    def test_one_flipped_bit_in_any_file_is_found(self, written: ActivationCache) -> None:
        folder, chance = Path(written.path), random.Random(0)
        files = sorted(f for f in folder.rglob("*") if f.is_file() and "provenance" not in f.parts)
        for file in files:
            content = file.read_bytes()
            altered = bytearray(content)
            altered[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            file.write_bytes(altered)
            name = str(file.relative_to(folder))
            try:
                problems = verify_cache(folder).problems
            except (CorruptCacheError, UsageError) as error:  # the manifest itself
                assert name == "zarr.json", error
            else:
                assert problems, name
                assert all(name in problem for problem in problems), (name, problems)
            file.write_bytes(content)
        assert verify_cache(folder).ok

    def test_it_travels_through_object_storage(self, written: ActivationCache, tmp_path: Path) -> None:
        url = (tmp_path / "bucket" / "cache").as_uri()
        Push(Path(written.path), url).run()
        Pull(url, tmp_path / "copy").run()
        assert cache_bytes(tmp_path / "copy") == cache_bytes(Path(written.path))

    # ---- writing again

    def test_a_finished_cache_is_not_written_again(self, written: ActivationCache) -> None:
        """The writer may refuse it, or find that nothing is left to do."""
        folder = Path(written.path)
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
        with suppress(UsageError):
            self.write(folder)
        assert {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()} == before

    def test_an_interrupted_cache_is_none_and_continues(self, tmp_path: Path) -> None:
        """Stopped at any change of the file system, then run again: the same bytes as without."""
        if not self.num_interruptions:
            pytest.skip("this writer does not continue")
        whole = tmp_path / "whole"
        changes = count_changes(tmp_path, lambda: self.write(whole))
        assert changes is not None and changes > 1, "the writer changes nothing below its folder"
        expected = cache_bytes(whole)
        step = max(1, changes // self.num_interruptions)
        for stop_at in sorted({*range(1, changes + 1, step), *range(max(1, changes - 2), changes + 1)}):
            path = tmp_path / f"stopped-{stop_at}"
            stopped = count_changes(tmp_path, lambda path=path: self.write(path), stop_at=stop_at) is None  # type: ignore[misc]
            assert stopped, f"the writer hides that it was stopped at change {stop_at} of {changes}"
            if inspect_output(path) == "complete":
                assert cache_bytes(path) == expected, f"stopped at change {stop_at} of {changes}"
            elif not (path / "zarr.json").is_file():
                with pytest.raises((IncompleteCacheError, UsageError)):
                    open_cache(path)
            if inspect_output(path) != "complete":
                self.write(path)
            assert cache_bytes(path) == expected, f"stopped at change {stop_at} of {changes}"
            shutil.rmtree(path)
