"""Training curves out of a log as training leaves it: resumed, torn, long."""

import json

import pytest

from saecache.common.errors import UsageError
from saecache.evaluate.report.training import read_training_curves


def write(path, records, tail=""):
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def record(step, variant="a", **values):
    return {"step": step, "rows": 10 * step, "variant": variant, "fvu": 0.5, "l0": 4, "dead": 0, **values}


def test_variants_are_separate_and_later_lines_of_a_step_count(tmp_path) -> None:
    records = [record(1), record(2, fvu=0.4), record(1, "b"), record(2, fvu=0.3)]
    curves = read_training_curves(write(tmp_path / "m", records))
    assert curves["a"] == {"rows": [10, 20], "fvu": [0.5, 0.3], "l0": [4, 4], "dead": [0, 0]}
    assert curves["b"]["rows"] == [10]


def test_a_torn_last_line_is_passed_over_and_any_other_is_told(tmp_path) -> None:
    assert read_training_curves(write(tmp_path / "m", [record(1)], '{"step": 2, "va'))["a"]["rows"] == [10]
    with pytest.raises(UsageError, match="line 2"):
        read_training_curves(write(tmp_path / "m", [record(1)], "{broken\n" + json.dumps(record(3)) + "\n"))


def test_long_logs_are_thinned_and_keep_their_end(tmp_path) -> None:
    curves = read_training_curves(write(tmp_path / "m", [record(s) for s in range(1, 5001)]))
    assert len(curves["a"]["rows"]) <= 301
    assert (curves["a"]["rows"][0], curves["a"]["rows"][-1]) == (10, 50_000)


def test_what_is_not_a_number_is_none(tmp_path) -> None:
    curves = read_training_curves(
        write(tmp_path / "m", [record(1, fvu=float("nan"), l0=None, dead="x"), record(2, fvu=0.123456789)])
    )
    assert curves["a"]["fvu"] == [None, 0.12346]
    assert curves["a"]["l0"] == [None, 4]
    assert curves["a"]["dead"] == [None, 0]
