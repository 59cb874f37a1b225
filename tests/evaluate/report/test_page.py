"""The report as a file: whole, self-contained, and deaf to what names and tokens would like it to do."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import run, write_report
from saecache.evaluate.report.page_data import to_script_json

HOSTILE = (
    "</script><script>document.title='broken'</script><img src=x onerror=document.title='broken'>\"'&{{7*7}}"
)


class Elements(HTMLParser):
    """Start tags with attributes, and the text of the data block."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))
        self._inside = tag == "script" and dict(attributes).get("id") == "data"

    def handle_endtag(self, tag) -> None:
        self._inside = False

    def handle_data(self, text) -> None:
        self.data += text if self._inside else ""


def test_the_report_is_one_file_without_network(run_dir, cache, model, tmp_path) -> None:
    results = run([run_dir], cache, model=model, decode_token="<{}>".format, show_progress=False)
    path = write_report([run_dir], tmp_path / "new" / "report.html")
    html = path.read_text("utf-8")
    elements = Elements(html)
    assert len(html) < 1_000_000
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", html)
    assert not any({"src", "srcset", "background"} & attributes.keys() for _, attributes in elements.tags)
    assert {a["href"][0] for tag, a in elements.tags if tag == "a"} == {"#"}
    assert sum(tag == "script" for tag, _ in elements.tags) == 2
    policy = next(
        a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    data = json.loads(elements.data)
    assert [sae["name"] for sae in data["saes"]] == [sae.name for sae in results.saes]
    assert data["saes"][0]["fvu"] == results.saes[0].normalized.fvu
    assert len(data["saes"][0]["training"]["rows"]) == 39
    assert data["saes"][0]["latents"][0]["contexts"] == [
        context.model_dump() for context in results.saes[0].latents[0].contexts
    ]
    for text in (cache.fingerprint, "tiny", HOOK_NAMES, *results.definitions):
        assert text in html
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


HOOK_NAMES = "resid_post.0, resid_post.1"


def test_hostile_names_tokens_and_settings_stay_text(run_dir, cache, tmp_path) -> None:
    run([run_dir], cache, decode_token=lambda token: HOSTILE, show_progress=False)
    path = run_dir / "results.json"
    values = json.loads(path.read_text())
    values["warnings"] = [HOSTILE]
    values["cache"]["identity"]["model"] = {"name": HOSTILE}
    values["definitions"][HOSTILE] = HOSTILE
    for sae in values["saes"]:
        sae["name"] = sae["kind"] = sae["hook"] = sae["name"] + HOSTILE
        sae["config"] = {HOSTILE: HOSTILE}
    path.write_text(json.dumps(values))
    elements = Elements(write_report([run_dir], tmp_path / "r.html").read_text("utf-8"))
    assert sum(tag == "script" for tag, _ in elements.tags) == 2
    assert not any(tag == "img" for tag, _ in elements.tags)
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    assert HOSTILE in json.loads(elements.data)["saes"][0]["name"]


def test_script_safe_json_is_the_same_value() -> None:
    value = {"<!--": ["</ScRiPt>", "]]>", "&amp;", "\u2028\u2029", 'quote " and \\', "∅ é 😀"]}
    text = to_script_json(value)
    assert json.loads(text) == value
    assert not re.search("[<>&\u2028\u2029]", text)
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_script_json(float("nan"))


def test_results_elsewhere_find_the_runs_log(run_dir, cache, tmp_path) -> None:
    """As the demo lays it out: results and report beside the runs."""
    out = tmp_path / "results.json"
    run([run_dir], cache, out=out, show_progress=False)
    html = write_report([run_dir], tmp_path / "report.html", results=out).read_text("utf-8")
    assert all(sae["training"] for sae in json.loads(Elements(html).data)["saes"])
    moved = tmp_path / "moved"
    moved.mkdir()
    out.rename(moved / "results.json")
    html = write_report([run_dir], tmp_path / "report.html", results=moved / "results.json").read_text(
        "utf-8"
    )
    assert all(sae["training"] for sae in json.loads(Elements(html).data)["saes"])


def test_without_a_log_the_rest_is_drawn(run_dir, cache, tmp_path) -> None:
    (run_dir / "metrics.jsonl").unlink()
    run([run_dir], cache, show_progress=False)
    html = write_report([run_dir], tmp_path / "report.html").read_text("utf-8")
    assert [sae["training"] for sae in json.loads(Elements(html).data)["saes"]] == [None] * 3


def test_several_runs_in_one_report(run_dir, cache, tmp_path) -> None:
    run([run_dir], cache, show_progress=False)
    other = tmp_path / "runs" / "other"
    run([run_dir / "topk_k4" / "sae"], cache, out=other / "results.json", show_progress=False)
    html = write_report([run_dir, other], tmp_path / "report.html").read_text("utf-8")
    names = [sae["name"] for sae in json.loads(Elements(html).data)["saes"]]
    assert names == ["batch_topk_k6", "raw_k4", "tiny/topk_k4", "other/topk_k4"]
    assert "different caches" not in html
    values = json.loads((other / "results.json").read_text())
    values["cache"]["fingerprint"] = "0" * 64
    (other / "results.json").write_text(json.dumps(values))
    assert "2 different caches" in write_report([run_dir, other], tmp_path / "r.html").read_text("utf-8")


def test_a_run_that_was_not_measured_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="measure first, with 'saecache evaluate"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_drawing_needs_no_torch(run_dir, cache, tmp_path) -> None:
    import subprocess
    import sys

    run([run_dir], cache, show_progress=False)
    code = (
        "import sys; from saecache.evaluate import write_report;"
        f"write_report([{str(run_dir)!r}], {str(tmp_path / 'r.html')!r}); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
