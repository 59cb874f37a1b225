"""Whatever the files of another library hold, the SAE is loaded or refused in words, in bounded work."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from saecache.common.errors import UsageError
from saecache.train import load_sae

from ...hostile import CASES, damaged_json, in_its_place, mutated, replace_with, right_or_refused
from .layouts import layouts, rows, write_weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="FIFOs, and the peak of memory in /proc")
NAMES = ("saelens_jumprelu", "saelens_gated", "dictionary_nested", "sparsify", "gemma_scope", "llama_scope")


def use(folder: Path) -> Any:
    sae = load_sae(folder)
    return sae(rows(2), input="raw")


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is compiled or imported at first use is not the work of a hostile file."""
    for name in NAMES:
        use(layouts()[name].write(tmp_path_factory.mktemp("warm")))


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes(name: str, tmp_path: Path) -> None:
    layout = layouts()[name]
    folder = layout.write(tmp_path)
    for file in (*layout.configs, layout.weights):
        content = (folder / file).read_bytes()
        for seed in range(CASES):
            (folder / file).write_bytes(mutated(content, seed))
            right_or_refused(lambda: use(folder))
        (folder / file).write_bytes(content)
    assert use(folder) is not None


@pytest.mark.parametrize("name", NAMES)
def test_any_value_in_a_config(name: str, tmp_path: Path) -> None:
    layout = layouts()[name]
    folder = layout.write(tmp_path)
    for file in layout.configs:
        content = (folder / file).read_bytes()
        for seed in range(2 * CASES):
            (folder / file).write_bytes(damaged_json(content, seed))
            right_or_refused(lambda: use(folder))
        (folder / file).write_bytes(content)


@pytest.mark.parametrize("name", ["dictionary_nested", "gemma_scope"])
def test_any_bytes_at_the_ends_of_an_archive(name: str, tmp_path: Path) -> None:
    """Most bytes of an archive are numbers; here the description and the directory are hit."""
    layout = layouts()[name]
    folder = layout.write(tmp_path)
    content = (folder / layout.weights).read_bytes()
    for seed in range(6 * CASES):
        cut = seed % 2 * (len(content) - 1200)
        part = mutated(content[cut : cut + 1200], seed)
        (folder / layout.weights).write_bytes(content[:cut] + part + content[cut + 1200 :])
        right_or_refused(lambda: use(folder))


@in_its_place
@pytest.mark.parametrize("name", NAMES)
def test_something_else_in_its_place(name: str, what: str, tmp_path: Path) -> None:
    layout = layouts()[name]
    for file in (*layout.configs, layout.weights):
        folder = layout.write(tmp_path / file.replace("/", "_"))
        replace_with(what, folder / file)
        assert right_or_refused(lambda: use(folder)) is None  # noqa: B023 - called at once


def test_files_that_are_links_are_read(tmp_path: Path) -> None:
    """As in the download cache of a hub."""
    layout = layouts()["saelens_jumprelu"]
    folder = layout.write(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in folder.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert use(tmp_path / "snapshot") is not None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama_scope", {"jump_relu_threshold": 10**400}),
        ("llama_scope", {"dataset_average_activation_norm": {"in": 10**400}}),
        ("sparsify", {"d_in": 10**4000, "expansion_factor": 10**4000, "num_latents": 0}),
    ],
)
def test_numbers_that_no_float_holds_and_nobody_prints(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    layout = layouts()[name]
    folder = layout.write(tmp_path)
    path = folder / next(iter(layout.configs))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert right_or_refused(lambda: use(folder)) is None


@pytest.mark.parametrize("name", ["dictionary_nested", "gemma_scope"])
@pytest.mark.parametrize("axis", [0, 1])
def test_matrices_without_a_row_or_a_column(name: str, axis: int, tmp_path: Path) -> None:
    layout = layouts()[name]
    folder = layout.write(tmp_path)
    width = next(t for t in layout.tensors.values() if t.ndim == 2).shape[axis]
    tensors = {}
    for key, tensor in layout.tensors.items():
        for dim, size in enumerate(tensor.shape):
            tensor = tensor.narrow(dim, 0, 0) if size == width else tensor
        tensors[key] = tensor
    write_weights(folder / layout.weights, tensors)
    for path in map(folder.joinpath, layout.configs):
        values = json.loads(path.read_text())
        trainer = values.get("trainer", values)
        for size in ("dict_size", "activation_dim"):
            trainer.pop(size, None)
        path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match="there is no such SAE"):
        use(folder)
