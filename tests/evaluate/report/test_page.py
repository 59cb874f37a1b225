"""The report as a file: whole, self-contained, and deaf to what names and tokens would like it to do."""

import base64
import json
import re
import shutil
import zlib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.evaluate import run, write_report
from saecache.evaluate.latents.folder import read_latents
from saecache.evaluate.report.page import to_script_json

HOSTILE = (
    "</script><script>document.title='broken'</script><img src=x onerror=document.title='broken'>\"'&{{7*7}}"
)


def unpacked(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a part, as the page's script reads them."""
    length = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + length])
    assert (4 + length) % 8 == 0
    return {
        name: np.frombuffer(content, f"<{kind}", int(np.prod(shape)), 4 + length + at).reshape(shape)
        for name, (kind, shape, at) in header.items()
    }


class Elements(HTMLParser):
    """Start tags with attributes, and the text of the data block."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.parts: dict[str, str] = {}
        self._inside, self._part = False, None
        self.feed(html)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append((tag, dict(attributes)))
        self._inside = tag == "script" and dict(attributes).get("id") == "data"
        self._part = dict(attributes).get("data-part")

    def handle_endtag(self, tag) -> None:
        self._inside, self._part = False, None

    def handle_data(self, text) -> None:
        self.data += text if self._inside else ""
        if self._part is not None:
            self.parts[self._part] = self.parts.get(self._part, "") + text

    def part(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of a part of the latents."""
        return unpacked(zlib.decompress(base64.b64decode(self.parts[name])))

    def training(self) -> list[int]:
        """How many points the training curve of each SAE has."""
        curves = [
            f for f in json.loads(self.data)["figures"] if (f["section"], f["title"]) == ("training", "FVU")
        ]
        points = {s["sae"]: len(s["points"]) for f in curves for s in f["series"]}
        return [points.get(number, 0) for number in range(len(json.loads(self.data)["saes"]))]


def test_the_report_is_one_file_without_network(run_dir, cache, model, tmp_path) -> None:
    results = run([run_dir], cache, model=model, decode_token="<{}>".format, show_progress=False)
    path = write_report([run_dir], tmp_path / "new" / "report.html")
    html = path.read_text("utf-8")
    elements = Elements(html)
    assert len(html) < 1_000_000
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", html)
    assert not any({"src", "srcset", "background"} & attributes.keys() for _, attributes in elements.tags)
    assert {a["href"][0] for tag, a in elements.tags if tag == "a"} == {"#"}
    scripts = [attributes for tag, attributes in elements.tags if tag == "script"]
    assert [a.get("type") for a in scripts if "data-part" not in a] == ["application/json", None]
    assert {a["type"] for a in scripts if "data-part" in a} == {"text/plain"}
    policy = next(
        a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy
    data = json.loads(elements.data)
    assert [sae["name"] for sae in data["saes"]] == [sae.name for sae in results.saes]
    fvu = next(figure for figure in data["figures"] if figure["title"] == "L0 and FVU")
    for sae, series in zip(results.saes, fvu["series"], strict=True):
        assert series["points"] == [[sae.codes.l0, sae.normalized.fvu]]
        assert series["intervals"] == [[*sae.codes.intervals["l0"], *sae.normalized.intervals["fvu"]]]
    assert elements.training() == [39] * 3
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
    scripts = [attributes for tag, attributes in elements.tags if tag == "script"]
    assert [a.get("type") for a in scripts if "data-part" not in a] == ["application/json", None]
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
    assert all(Elements(html).training())
    moved = tmp_path / "moved"
    moved.mkdir()
    out.rename(moved / "results.json")
    html = write_report([run_dir], tmp_path / "report.html", results=moved / "results.json").read_text(
        "utf-8"
    )
    assert all(Elements(html).training())


def test_without_a_log_the_rest_is_drawn(run_dir, cache, tmp_path) -> None:
    (run_dir / "metrics.jsonl").unlink()
    run([run_dir], cache, show_progress=False)
    html = write_report([run_dir], tmp_path / "report.html").read_text("utf-8")
    assert Elements(html).training() == [0] * 3


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


def test_parts_hold_what_the_folders_hold(run_dir, cache, unembedding, tmp_path) -> None:
    results = run([run_dir], cache, unembedding=unembedding, decode_token="<{}>".format, show_progress=False)
    elements = Elements(write_report([run_dir], tmp_path / "report.html").read_text("utf-8"))
    data = json.loads(elements.data)
    # Two of the SAEs are of one hook; all three are looked at on the same rows, and share one text.
    assert [sae["latents"]["text"] for sae in data["saes"]] == [0, 0, 0]
    assert [name for name in elements.parts if name.endswith("text")] == ["0/text"]
    text = elements.part("0/text")
    words = [
        bytes(text["vocabulary_utf8"][a:b]).decode()
        for a, b in zip(text["vocabulary_ptr"], text["vocabulary_ptr"][1:], strict=False)
    ]
    for number, sae in enumerate(results.saes):
        latents = read_latents(run_dir / sae.latents_dir)
        index, contexts = elements.part(f"{number}/index"), elements.part(f"{number}/contexts")
        assert index["number"].tolist() == list(range(sae.num_latents))
        assert index["density"] == pytest.approx(latents.fires / latents.info.num_rows, rel=1e-6)
        assert contexts["token"].tolist() == latents.context_token.tolist()
        assert contexts["ptr"].tolist() == latents.context_ptr.tolist()
        about = data["saes"][number]["latents"]
        assert (about["shown"], about["all"], about["has_logits"]) == (96, 96, True)
        for latent in range(sae.num_latents):
            block = elements.part(f"{number}/block-{latent // about['block']}")
            at = latent % about["block"]
            assert block["nearest"][at].tolist() == latents.nearest[latent].tolist()
            assert block["coactive"][at].tolist() == latents.coactive[latent].tolist()
            assert block["histogram"][at].tolist() == latents.histogram[latent].tolist()
            assert [words[w] for w in block["promoted"][at]] == [f"<{t}>" for t in latents.promoted[latent]]
            own = slice(int(block["context_ptr"][at]), int(block["context_ptr"][at + 1]))
            first = int(latents.context_ptr[latent])
            for here, context in enumerate(range(own.start, own.stop), start=first):
                assert block["context_token"][context] == latents.context_token[here]
                assert block["context_fifth"][context] == latents.context_fifth[here]
                part = slice(int(block["activation_ptr"][context]), int(block["activation_ptr"][context + 1]))
                there = slice(int(latents.activation_ptr[here]), int(latents.activation_ptr[here + 1]))
                shares = block["activation_share"][part] / 32767 * latents.largest[latent]
                assert shares == pytest.approx(latents.activation_value[there], abs=1e-4)
                distances = latents.activation_distance[there].tolist()
                assert block["activation_distance"][part].tolist() == distances


def test_a_page_of_some_latents_says_so(run_dir, cache, tmp_path) -> None:
    run([run_dir], cache, show_progress=False)
    html = write_report([run_dir], tmp_path / "report.html", most_latents=10).read_text("utf-8")
    index = Elements(html).part("0/index")
    assert len(index["number"]) == 10
    assert sorted(set(index["number"].tolist())) == index["number"].tolist()
    assert "10 of 96 latents are in this page" in html
    assert "saecache browse" in html


def test_results_without_their_folder_show_the_sample(run_dir, cache, tmp_path) -> None:
    results = run([run_dir], cache, decode_token="<{}>".format, show_progress=False)
    shutil.rmtree(run_dir / "results.latents")
    html = write_report([run_dir], tmp_path / "report.html").read_text("utf-8")
    assert "only a sample of its latents is shown" in html
    elements = Elements(html)
    sampled = sorted(results.saes[0].latents, key=lambda latent: latent.index)
    index, block = elements.part("0/index"), elements.part("0/block-0")
    assert index["number"].tolist() == [latent.index for latent in sampled]
    assert index["largest"] == pytest.approx([latent.max_activation for latent in sampled])
    for at, latent in enumerate(sampled):
        contexts = int(block["context_ptr"][at + 1] - block["context_ptr"][at])
        assert contexts == len(latent.contexts)
        counts = latent.activation_histogram.counts
        assert block["histogram"][at][: len(counts)].tolist() == counts
        width = block["histogram_end"][at] / block["histogram"].shape[1]
        assert width == pytest.approx(latent.activation_histogram.edges[1], rel=1e-3)


def test_damaged_latents_are_refused_and_places_elsewhere_too(run_dir, cache, tmp_path) -> None:
    run([run_dir], cache, show_progress=False)
    path = run_dir / "results.json"
    values = json.loads(path.read_text())
    for place in ("..", "../..", "/etc", ".", "", "a\0b"):
        values["saes"][0]["latents_dir"] = place
        path.write_text(json.dumps(values))
        with pytest.raises(UsageError, match="is not a folder beside the results"):
            write_report([run_dir], tmp_path / "r.html")
    values["saes"][0]["latents_dir"] = "results.latents/topk_k4"
    path.write_text(json.dumps(values))
    (run_dir / "results.latents" / "topk_k4" / "latents.json").write_text("{}")
    with pytest.raises(UsageError, match="topk_k4 is damaged"):
        write_report([run_dir], tmp_path / "r.html")


def test_results_of_a_former_version_are_drawn(tmp_path) -> None:
    golden = Path(__file__).parents[1] / "golden" / "results-0.2.0.json"
    html = write_report([], tmp_path / "r.html", results=golden).read_text("utf-8")
    names = [sae["name"] for sae in json.loads(Elements(html).data)["saes"]]
    assert all(name in html for name in names)


def test_the_matrix_of_overlaps(run_dir, cache, tmp_path) -> None:
    results = run([run_dir], cache, show_progress=False)
    html = write_report([run_dir], tmp_path / "r.html").read_text("utf-8")
    (pair,) = results.overlap
    table = html[html.index('<table class="matrix">') :].split("</table>")[0]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table)
    names = [sae.name for sae in results.saes]
    a, b = names.index(pair.a), names.index(pair.b)
    assert cells[3 * a + b] == f"{pair.mmcs_a_in_b:.3f}"
    assert cells[3 * b + a] == f"{pair.mmcs_b_in_a:.3f}"
    assert [cells[4 * i] for i in range(3)] == ["1", "1", "1"]
    assert sum(bool(cell) for cell in cells) == 5
