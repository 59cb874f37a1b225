"""A folder of latents on disk: what was written is read, and whatever else stands there is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from saecache.common.errors import UsageError
from saecache.evaluate.latents.arrays import read_arrays, write_arrays
from saecache.evaluate.latents.folder import latents_folder, read_latents, write_latents

from ...hostile import CASES, damaged_json, in_its_place, mutated, replace_with, right_or_refused


@pytest.fixture
def latents(collect, dense):
    return collect(dense)


@pytest.fixture
def folder(latents, tmp_path: Path) -> Path:
    write_latents(latents, tmp_path / "latents")
    return tmp_path / "latents"


def test_what_was_written_is_read(latents, folder) -> None:
    found = read_latents(folder)
    assert found.info.model_copy(update={"sha256": "", "num_bytes": 0}) == latents.info
    arrays = latents.arrays()
    assert found.arrays().keys() == arrays.keys()
    for name, array in found.arrays().items():
        assert np.array_equal(array, arrays[name]), name
        assert array.dtype == arrays[name].dtype
    assert found.token_text(7) == "<7>"
    theirs = load_file(folder / "latents.safetensors")
    assert all(np.array_equal(theirs[name], array) for name, array in arrays.items())
    assert theirs.keys() == arrays.keys()


def test_equal_latents_are_equal_bytes_and_replace_others(latents, folder) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "latents.json").write_text("{}")
    write_latents(latents, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_latents_without_a_model_have_no_logit_effects(collect, dense, tmp_path) -> None:
    write_latents(collect(dense, with_model=False), tmp_path / "latents")
    assert read_latents(tmp_path / "latents").promoted is None


DAMAGE = [
    ("context_ptr", lambda a: np.r_[a[:-1], a[-1] + 1], "context_ptr does not cut"),
    ("context_ptr", lambda a: np.r_[a[0], a[1] + 10**6, a[2:]], "context_ptr does not cut"),
    ("activation_ptr", lambda a: np.r_[1, a[1:]], "activation_ptr does not cut"),
    ("activation_ptr", lambda a: np.r_[a[0], 2**63 - 1, -2, a[3:]], "activation_ptr does not cut"),
    ("context_ptr", lambda a: np.r_[a[0], 2**63 - 1, -2, a[3:]], "context_ptr does not cut"),
    ("passage_ptr", lambda a: a - 1, "passage_ptr does not cut"),
    ("vocabulary_ptr", lambda a: a[::-1], "vocabulary_ptr does not cut"),
    ("context_token", lambda a: a + 10**6, "context_token has values outside"),
    ("context_fifth", lambda a: a + 6, "context_fifth has values outside"),
    ("nearest", lambda a: a - 1000, "nearest has values outside"),
    ("coactive", lambda a: a + 1000, "coactive has values outside"),
    ("fires", lambda a: a - 10**6, "fires has values outside"),
    ("histogram", lambda a: a - 1, "histogram has values outside"),
    ("text_measured", lambda a: a + 2, "text_measured has values outside"),
    ("passage_position", lambda a: a + 1000, "passage_position has values outside"),
    ("passage_sequence", lambda a: a - 10**9, "passage_sequence has values outside"),
    ("text", lambda a: a + 1000, "text has token ids that vocabulary does not have"),
    ("promoted", lambda a: a - 1000, "promoted has token ids that vocabulary does not have"),
    ("vocabulary", lambda a: a[::-1], "vocabulary is not ascending"),
    ("vocabulary", lambda a: np.r_[a[:-2], 2**31 - 1, -(2**31)], "vocabulary is not ascending"),
    ("largest", lambda a: a * np.float32(np.nan), "largest holds numbers that are not finite"),
    ("activation_value", lambda a: a / 0, "activation_value holds numbers that are not finite"),
    ("histogram_end", lambda a: -a, "largest is not between 0 and histogram_end"),
    ("histogram_end", lambda a: a / 4, "largest is not between 0 and histogram_end"),
    ("largest", lambda a: -a, "largest is not between 0 and histogram_end"),
    ("activation_distance", lambda a: a + 500, "activation_distance leaves the passage"),
    ("mean", lambda a: a.astype(np.int32), "array mean should be"),
    ("mean", lambda a: a[:-1], "array mean should be"),
    ("histogram", lambda a: a[:, :32], "array histogram should be"),
    ("suppressed", lambda a: a[:, :3], "array suppressed_effect should be|array suppressed should be"),
    ("coactive", None, "it lacks the arrays"),
    ("promoted", None, "it has a part of the logit effects"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE, ids=[f"{n}-{m[-12:]}" for n, _, m in DAMAGE])
def test_arrays_that_contradict_one_another(name, damage, message, latents, folder) -> None:
    """With the right checksum: as somebody would write who wants to break the reader."""
    arrays = {key: np.array(array) for key, array in latents.arrays().items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        spoilt_array = None if damage is None else damage(arrays[name])
    if spoilt_array is None:
        del arrays[name]
    else:
        kept = arrays[name].dtype if "should be" not in message else spoilt_array.dtype
        arrays[name] = np.ascontiguousarray(spoilt_array.astype(kept))
    sha256 = write_arrays(folder / "latents.safetensors", arrays)
    info = json.loads((folder / "latents.json").read_text())
    (folder / "latents.json").write_text(
        json.dumps(info | {"sha256": sha256, "num_bytes": (folder / "latents.safetensors").stat().st_size})
    )
    with pytest.raises(UsageError, match=message) as caught:
        read_latents(folder)
    assert "measure again with 'saecache evaluate'" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"radius": -5}, "its numbers of latents, rows and positions, or its radius, cannot be"),
        ({"radius": 1}, "activation_distance has values outside -1 to 1"),
        ({"definitions": {"x" * 100_000: 1}}, "definitions.x+: Input should be a valid string"),
    ],
)
def test_a_description_that_contradicts_the_arrays(values, message, folder) -> None:
    info = json.loads((folder / "latents.json").read_text())
    (folder / "latents.json").write_text(json.dumps(info | values))
    with pytest.raises(UsageError, match=message) as caught:
        read_latents(folder)
    assert len(str(caught.value)) < 1000


def test_an_unknown_array_a_changed_byte_and_a_later_version(latents, folder) -> None:
    path = folder / "latents.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UsageError, match=r"has sha256 .*, expected"):
        read_latents(folder)
    sha256 = write_arrays(path, {**latents.arrays(), "more": np.zeros(3, dtype=np.int8)})
    info = json.loads((folder / "latents.json").read_text())
    (folder / "latents.json").write_text(
        json.dumps(info | {"sha256": sha256, "num_bytes": (folder / "latents.safetensors").stat().st_size})
    )
    with pytest.raises(UsageError, match=r"has \['more'\] beside the expected ones"):
        read_latents(folder)
    (folder / "latents.json").write_text(json.dumps(info | {"format_version": 2}))
    with pytest.raises(UsageError, match="has format version 2, expected 1"):
        read_latents(folder)


pytestmark_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="FIFOs, and the peak of memory in /proc"
)


@pytestmark_linux
def test_any_bytes(folder) -> None:
    for name in ("latents.json", "latents.safetensors"):
        content = (folder / name).read_bytes()
        for seed in range(CASES):
            (folder / name).write_bytes(mutated(content, seed))
            right_or_refused(lambda: read_latents(folder))
        (folder / name).write_bytes(content)


@pytestmark_linux
def test_any_header_whose_checksum_is_right(folder) -> None:
    """The bytes of the header are changed, and the checksum is that of the changed file."""
    import hashlib

    path = folder / "latents.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    info = json.loads((folder / "latents.json").read_text())
    for seed in range(2 * CASES):
        if seed % 2:
            changed = mutated(content[:end], seed) + content[end:]
        else:
            header = damaged_json(content[8:end], seed)
            changed = len(header).to_bytes(8, "little") + header + content[end:]
        path.write_bytes(changed)
        sha256 = hashlib.sha256(changed).hexdigest()
        (folder / "latents.json").write_text(
            json.dumps(
                info | {"sha256": sha256, "num_bytes": (folder / "latents.safetensors").stat().st_size}
            )
        )
        right_or_refused(lambda: read_latents(folder))


@pytestmark_linux
def test_any_value_in_the_description(folder) -> None:
    content = (folder / "latents.json").read_bytes()
    for seed in range(CASES):
        (folder / "latents.json").write_bytes(damaged_json(content, seed))
        right_or_refused(lambda: read_latents(folder))


@pytestmark_linux
@in_its_place
@pytest.mark.parametrize("name", ["latents.json", "latents.safetensors"])
def test_something_else_in_its_place(name: str, what: str, folder) -> None:
    replace_with(what, folder / name)
    right_or_refused(lambda: read_latents(folder))


def test_arrays_of_no_entries(tmp_path: Path) -> None:
    arrays = {"a": np.zeros((0, 3), dtype=np.int16), "b": np.arange(4, dtype=np.int64)}
    write_arrays(tmp_path / "x.safetensors", arrays)
    found = read_arrays(tmp_path / "x.safetensors", {"a": ("int16", ("n", 3)), "b": ("int64", ("m",))}, {})
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())


def test_names_of_folders_stay_below_the_results() -> None:
    for name in ("topk_k16", "run/topk", "..", ".", "a\\b", "x%2F", "é"):
        folder = latents_folder(Path("runs/demo/results.json"), name)
        assert folder.parent == Path("runs/demo/results.latents")
        assert folder.name not in ("", ".", "..")
        assert "/" not in folder.name
    assert latents_folder(Path("a/r.json"), "x").name == "x"
