"""Other packages are measured where they are, and the report says why where they are not."""

from pathlib import Path

import pytest
import torch

from saecache.configs import load_config
from saecache.doctor import DoctorConfig
from saecache.doctor.config import Sizes
from saecache.doctor.measurements import peers
from saecache.doctor.measurements.peers import measure_peers
from saecache.doctor.notes import Notes

CPU = torch.device("cpu")
GLUE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    if asked.get("step") == 3 and {fails}:
        sys.exit("out of memory")
    print(json.dumps({answer} if "peer" in asked else {{"seconds": 1.0, "cpu_seconds": 2.0}}), flush=True)
"""


@pytest.fixture
def notes() -> Notes:
    return Notes(name="peers", title="")


@pytest.fixture
def sizes() -> Sizes:
    overrides = ["cpu.latents=[64]", "cpu.rows=16", "cpu.width=8", "cpu.k=2", "cpu.rounds=2"]
    return load_config(DoctorConfig, "quick", overrides, kinds=("doctor",)).cpu


def use_glue(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, answer: str = "{'ready': True}", fails: bool = False
) -> None:
    """Replace the glue by a script; of the packages one is installed, whose module is Python's own json."""
    (folder / "glue.py").write_text(GLUE.format(answer=answer, fails=fails))
    monkeypatch.setattr(peers, "GLUE", folder / "glue.py")
    monkeypatch.setattr(peers, "PEERS", {"installed": "json", "absent": "no_such_module"})


def test_an_installed_package_takes_turns(
    notes: Notes, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_glue(tmp_path, monkeypatch)
    measure_peers(notes, sizes, CPU)
    step, ratio = notes.figures
    assert (step.name, step.unit, step.median, step.rounds) == ("installed", "ms", 1000, 2)
    assert ratio.name == "installed / saecache"
    assert ratio.median > 1
    assert [(left.name, left.why) for left in notes.left_out] == [
        ("absent", "not installed in this environment")
    ]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"answer": "{'missing': 'it has no topk'}"}, "it has no topk"),
        ({"fails": True}, "installed stopped: its process ended: out of memory"),
    ],
)
def test_a_package_that_does_not_work_is_left_out(
    options: dict, why: str, notes: Notes, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_glue(tmp_path, monkeypatch, **options)
    measure_peers(notes, sizes, CPU)
    assert {left.name: left.why for left in notes.left_out}["installed"] == why
    assert notes.figures == []
    assert notes.checks == [], "that another package fails is no failure of ours"


def test_a_wheel_has_no_glue_and_says_so(
    notes: Notes, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "GLUE", tmp_path / "nowhere.py")
    measure_peers(notes, sizes, CPU)
    assert "run from a clone" in notes.left_out[0].why


def test_the_glue_of_this_clone_is_where_it_is_looked_for() -> None:
    assert peers.GLUE.is_file()
