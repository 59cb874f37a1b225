"""The report in a real browser: drawn without a complaint, usable by keyboard, unmoved by hostile text."""

import json
from pathlib import Path

import numpy as np
import pytest

from saecache.evaluate import run, write_report
from saecache.evaluate.latents.folder import read_latents

from .browser import CHROMIUM, Page
from .test_page import HOSTILE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")

NUM_FIGURES = 13
TOKENS = ["plain", " word", "\n", "    ", "\t", "", "a\r\n  b", "\u202egnol", "\x00", "é", "�", HOSTILE]


@pytest.fixture
def report(run_dir, cache, model, unembedding, tmp_path) -> Path:
    """Names, tokens and facts of the worst kind."""
    decode = lambda token: TOKENS[token % len(TOKENS)]  # noqa: E731
    settings = {"num_contexts": 6, "show_progress": False}
    run([run_dir], cache, model=model, unembedding=unembedding, decode_token=decode, **settings)
    path = run_dir / "results.json"
    values = json.loads(path.read_text())
    values["cache"]["identity"]["model"]["name"] = HOSTILE
    values["saes"][0]["name"] += HOSTILE
    values["saes"][1]["kind"] += HOSTILE
    path.write_text(json.dumps(values))
    return write_report([run_dir], tmp_path / "report.html")


def opened(page) -> None:
    """Wait until the list of latents has been read."""
    page.until("document.documentElement.dataset.opened === 'true'")
    page.settle()


HEADING = "document.querySelector('.card h3')?.textContent"
LISTED = "[...document.querySelectorAll('.browser .row .n')].map(n => Number(n.textContent))"


@pytest.fixture
def page(report, tmp_path):
    with Page(report, tmp_path / "profile") as page:
        opened(page)
        yield page
        assert page.console == []
        assert "broken" not in page.evaluate("document.title")
        assert page.evaluate("document.images.length") == 0


def test_every_figure_is_drawn_with_axes_and_series(page) -> None:
    assert page.evaluate("document.documentElement.dataset.drawn") == str(NUM_FIGURES)
    figures = page.evaluate("""[...document.querySelectorAll("figure")].map(f => ({
        title: f.querySelector("b").textContent, series: f.querySelectorAll("g.series").length,
        ticks: [...f.querySelectorAll("svg text")].map(t => t.textContent),
        wrong: f.querySelector("svg").outerHTML.match(/NaN|undefined|Infinity/),
    }))""")
    assert [figure["title"] for figure in figures] == [
        "L0 and FVU",
        "L0 and MSE",
        "L0 and CE loss recovered",
        "FVU by layer",
        "CE loss recovered by layer",
        "FVU",
        "L0",
        "Alive latents",
        "Density by rank",
        "Density histogram",
        "Active latents per token",
        "Cumulative",
        "Progressive codes",
    ]
    for figure in figures:
        assert figure["series"] == 3
        assert len(figure["ticks"]) >= 6
        assert figure["wrong"] is None, figure
    assert page.evaluate("document.querySelectorAll('.legend').length") == 5


def test_the_table_holds_the_results_and_sorts(page, run_dir) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    column = (
        "[...document.querySelector('table.results tbody').rows].map(r => r.cells[%d].textContent.trim())"
    )
    heads = page.evaluate("[...document.querySelectorAll('table.results thead th')].map(h => h.textContent)")
    fvu = heads.index("FVU")
    assert page.evaluate(column % 0) == [sae["name"] for sae in results["saes"]]
    assert page.evaluate(column % fvu) == [f"{sae['normalized']['fvu']:.4f}" for sae in results["saes"]]
    head = f"document.querySelectorAll('table.results thead button')[{fvu}]"
    for descending in (False, True):
        page.evaluate(f"{head}.click()")
        shown = [float(text) for text in page.evaluate(column % fvu)]
        assert shown == sorted(shown, reverse=descending)
    assert page.evaluate(f"{head}.parentNode.getAttribute('aria-sort')") == "descending"


def test_pointer_and_arrow_keys_tell_values(page, run_dir) -> None:
    results = json.loads((run_dir / "results.json").read_text())
    page.evaluate("document.querySelector('#training-figures svg[role=img]').focus({preventScroll: true})")
    page.press("ArrowRight")
    assert page.evaluate("document.querySelector('#tip').innerText").startswith("64 rows")
    page.press("ArrowRight")
    assert page.evaluate("document.querySelector('#tip').innerText").startswith("128 rows")
    assert page.evaluate("document.querySelector('#spoken').textContent").startswith("128 rows")
    page.press("Escape")
    assert page.evaluate("document.querySelector('#tip').hidden")
    place = page.evaluate("""(() => {
        document.querySelector("#pareto").scrollIntoView({behavior: "instant"});
        const box = document.querySelector("#pareto-figures g.series path").getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2];
    })()""")
    page.settle()
    page.point_at(*place)
    told = page.evaluate("document.querySelector('#tip').innerText")
    assert results["saes"][0]["name"] in told
    assert f"{results['saes'][0]['normalized']['fvu']:.4g}" in told


def test_an_sae_can_be_hidden_everywhere(page) -> None:
    page.evaluate("document.querySelectorAll('#density .legend button')[1].click()")
    page.settle()
    shown = "[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('g.series').length)"
    assert page.evaluate(shown) == [2] * NUM_FIGURES
    assert page.evaluate("document.querySelectorAll('.legend [aria-pressed=false]').length") == 5
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "false"
    for i in (0, 2):
        page.evaluate(f"document.querySelectorAll('#density .legend button')[{i}].click()")
    page.settle()
    assert page.evaluate(shown) == [0] * NUM_FIGURES
    assert "nothing to show" in page.evaluate("document.querySelector('figure svg').textContent")


def test_tokens_are_shown_by_strength_and_what_cannot_be_seen_by_its_name(page, run_dir) -> None:
    sae = json.loads((run_dir / "results.json").read_text())["saes"][0]
    latent = next(latent for latent in sae["latents"] if latent["rank"] == 1)
    assert page.evaluate(HEADING) == f"Latent {latent['index']}"
    shown = page.evaluate("""[...document.querySelector(".card .contexts").children].map(c =>
        [...c.querySelectorAll(".t")].map(t => [t.textContent, t.style.background, t.className]))""")
    visible = ["plain", " word", "↵", "····", "→", "∅", "a↵··b", "‹202e›gnol", "‹0000›", "é", "�", HOSTILE]
    assert len(shown) == len(latent["contexts"]) == 6
    for context, spans in zip(latent["contexts"], shown, strict=True):
        for i, (text, background, css) in enumerate(spans):
            activation = context["activations"][i]
            assert text == visible[TOKENS.index(context["tokens"][i])]
            assert ("peak" in css) == (i == context["peak"])
            assert ("none" in css) == (activation is None)
            if not activation:
                assert background == ""
                continue
            strength = float(background.rpartition(",")[2].strip(" )"))
            assert strength == pytest.approx(0.1 + 0.6 * activation / latent["max_activation"], abs=1e-3)
    page.evaluate("document.querySelector('.context .words').focus({preventScroll: true})")
    page.press("ArrowRight")
    told = page.evaluate("document.querySelector('#tip').innerText")
    peak = latent["contexts"][0]["peak"]
    assert f"{latent['contexts'][0]['activations'][peak]:.4g}" in told
    assert f"document {latent['contexts'][0]['document']}" in told
    assert f"token {latent['contexts'][0]['token_ids'][peak]} " in told
    page.press("ArrowRight")
    position = latent["contexts"][0]["position"] + 1
    assert f"position {position}" in page.evaluate("document.querySelector('#tip').innerText")


def test_latents_of_every_sae_are_reached_by_keyboard(page, run_dir) -> None:
    saes = json.loads((run_dir / "results.json").read_text())["saes"]
    page.evaluate("document.querySelector('.tabs button').focus()")
    for number, sae in enumerate((*saes, saes[0])):
        page.until(f"location.hash.startsWith('#latent-{number % 3}-')")
        densest = next(latent["index"] for latent in sae["latents"] if latent["rank"] == 1)
        assert page.evaluate(HEADING) == f"Latent {densest}"
        assert page.evaluate("document.querySelector('.tools [aria-live]').textContent") == "96 of 96 latents"
        page.press("ArrowRight")
    page.until("location.hash.startsWith('#latent-1-')")
    page.evaluate("document.querySelector('.browser .list').focus()")
    order = densities(run_dir, saes[1])
    for key, at in (
        ("ArrowDown", 1),
        ("ArrowDown", 2),
        ("ArrowUp", 1),
        ("End", 95),
        ("Home", 0),
        ("ArrowUp", 0),
    ):
        page.press(key)
        page.until(f"document.querySelector('.card').dataset.number == '{order[at]}'")
        assert page.evaluate("document.querySelector('.row[aria-selected=true] .n').textContent") == str(
            order[at]
        )
        active = page.evaluate("document.querySelector('.list').getAttribute('aria-activedescendant')")
        assert active == f"latent-row-{at}"
        box, row = page.evaluate("""["list", "row[aria-selected=true]"].map(name => {
            const box = document.querySelector("." + name).getBoundingClientRect();
            return [box.top, box.bottom]; })""")
        assert box[0] - 1 <= row[0] < row[1] <= box[1] + 1


def densities(run_dir, sae) -> list[int]:
    """The latents of an SAE, densest first."""
    return [int(i) for i in np.argsort(-read_latents(run_dir / sae["latents_dir"]).fires, kind="stable")]


def set_control(page, selector: str, value: str) -> None:
    page.evaluate(f"""(() => {{ const control = document.querySelector({json.dumps(selector)});
        control.value = {json.dumps(value)};
        control.dispatchEvent(new Event("input")); control.dispatchEvent(new Event("change")); }})()""")


def count_of(page, text: str) -> None:
    page.until(
        f"document.querySelector('.tools [aria-live]').textContent.startsWith({json.dumps(text + ' of ')})"
    )
    page.settle()


def test_the_list_is_searched_filtered_and_sorted(page, run_dir) -> None:
    sae = json.loads((run_dir / "results.json").read_text())["saes"][0]
    latents = read_latents(run_dir / sae["latents_dir"])
    density = latents.fires / latents.info.num_rows
    order, band = ".tools select:nth-of-type(3)", ".tools select:nth-of-type(2)"
    for choice, key in (
        ("rare", density),
        ("max", -latents.largest),
        ("near", -latents.nearest_cosine[:, 0]),
    ):
        set_control(page, order, choice)
        key = np.where(key == 0, 2, key) if choice == "rare" else key  # dead latents come last
        first = [int(i) for i in np.argsort(key, kind="stable")]
        page.until(f"document.querySelector('.card').dataset.number == '{first[0]}'")
        shown = page.evaluate(LISTED)
        assert shown == first[: len(shown)]
        assert len(shown) > 10
    for choice, low, high in (("dead", -1, 0), ("over", 0.1, 2), ("ten", 0.01, 0.1)):
        set_control(page, band, choice)
        wanted = np.flatnonzero((density > low) & (density <= high))
        count_of(page, str(len(wanted)))
        assert set(page.evaluate(LISTED)) <= set(wanted.tolist())
        assert len(wanted) > 0
    set_control(page, band, "all")
    set_control(page, ".tools input", "17")
    count_of(page, "1")
    assert page.evaluate(LISTED) == [17]
    for where in ("peak", "text"):  # the token "é" at the context's own place, or anywhere in the window
        set_control(page, ".tools select:nth-of-type(1)", where)
        set_control(page, ".tools input", "É")
        expected = [
            latent
            for latent in range(latents.num_latents)
            if any(
                "é" in TOKENS[int(token) % len(TOKENS)]
                for context in range(latents.context_ptr[latent], latents.context_ptr[latent + 1])
                for token in window(latents, int(latents.context_token[context]), where)
            )
        ]
        count_of(page, str(len(expected)))
        assert 0 < len(expected) < latents.num_latents
        assert set(page.evaluate(LISTED)) <= set(expected)
    set_control(page, ".tools input", "no such text")
    count_of(page, "0")
    assert page.evaluate(LISTED) == []
    assert "No latent matches" in page.evaluate("document.querySelector('.card').innerText")


def window(latents, token: int, where: str) -> np.ndarray:
    """The token ids in which a context is searched."""
    if where == "peak":
        return latents.text[token : token + 1]
    passage = int(np.searchsorted(latents.passage_ptr, token, side="right")) - 1
    first = max(token - latents.info.radius, int(latents.passage_ptr[passage]))
    return latents.text[first : min(token + latents.info.radius + 1, int(latents.passage_ptr[passage + 1]))]


def test_related_latents_and_links_lead_to_latents(page, run_dir, report, tmp_path) -> None:
    sae = json.loads((run_dir / "results.json").read_text())["saes"][0]
    latents = read_latents(run_dir / sae["latents_dir"])
    densest = densities(run_dir, sae)[0]
    set_control(page, ".tools input", str(densest))
    count_of(page, "1")
    chips = page.evaluate(
        "[...document.querySelectorAll('.card .chips button')].map(b => parseInt(b.textContent))"
    )
    assert chips[:8] == latents.nearest[densest].tolist()
    assert chips[8:] == [int(i) for i in latents.coactive[densest] if i >= 0]
    promoted = page.evaluate("document.querySelector('.card .pair').querySelectorAll('.chips').length")
    assert promoted == 2
    page.evaluate("document.querySelector('.card .chips button').click()")  # which is not in the found ones
    page.until(f"document.querySelector('.card').dataset.number == '{latents.nearest[densest][0]}'")
    assert page.evaluate("document.querySelector('.tools input').value") == ""
    assert page.evaluate("location.hash") == f"#latent-0-{latents.nearest[densest][0]}"
    with Page(report, tmp_path / "other", fragment="latent-2-33") as other:
        opened(other)
        assert other.evaluate(HEADING) == "Latent 33"
        other.settle()
        assert 33 in other.evaluate(LISTED)  # the list has scrolled to it
        other.until("document.querySelector('.row[aria-selected=true]') !== null")
        assert other.evaluate("document.querySelector('.tabs [aria-selected=true]').textContent") == "topk_k4"
        assert other.console == []


def test_only_the_rows_in_sight_are_made(page) -> None:
    """Whatever the number of latents; those far down are made when they are scrolled to."""
    height = page.evaluate("document.querySelector('.list').clientHeight")
    assert page.evaluate("document.querySelector('.list').scrollHeight") == pytest.approx(96 * 34, abs=2)
    assert len(page.evaluate(LISTED)) <= height / 34 + 10
    before = page.evaluate(LISTED)
    page.evaluate("document.querySelector('.list').scrollTop = 96 * 34")
    page.settle()
    after = page.evaluate(LISTED)
    assert len(after) <= height / 34 + 10
    assert not set(before) & set(after) or height > 48 * 34
    assert page.evaluate("document.querySelectorAll('script[data-part]').length") == 3 * (2 + 2) + 1


def test_dark_and_narrow(page) -> None:
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.evaluate("document.getElementById('theme').click()")
    page.settle()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    for width in (360, 800, 1900):
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        page.settle()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.querySelector('figure svg').getBoundingClientRect().width") > 250


def test_a_grid_gives_each_family_one_colour(run_dir, report, tmp_path) -> None:
    path = run_dir / "results.json"
    values = json.loads(path.read_text())
    sae = values["saes"][2]
    values["saes"] = [
        {**sae, "name": f"{kind}_{k}", "kind": kind, "codes": {**sae["codes"], "l0": k}}
        for k in (4, 8, 16, 32)
        for kind in ("a", "b", "c")
    ]
    path.write_text(json.dumps(values))
    with Page(write_report([run_dir], report), tmp_path / "profile") as page:
        opened(page)
        first = "#pareto-figures figure:first-child"
        markers = f"[...document.querySelectorAll('{first} g.series path:not(.interval)')]"
        fills = page.evaluate(f"{markers}.map(p => p.getAttribute('fill'))")
        assert [len(set(fills[i::3])) for i in range(3)] == [1, 1, 1]
        assert len(set(fills)) == 3
        lines = "[...document.querySelector('#pareto-figures svg[role=img]').querySelectorAll('.link')]"
        strokes = page.evaluate(f"{lines}.map(p => p.getAttribute('stroke'))")
        assert sorted(strokes) == sorted(set(fills))
        assert page.console == []


def test_figures_are_saved_as_svg_and_csv(page, run_dir) -> None:
    page.evaluate("""(() => {
        window.saved = [];
        URL.createObjectURL = blob => { window.saved.push(blob.text()); return "about:blank"; };
        HTMLAnchorElement.prototype.click = function () { window.saved.push(this.download); };
        document.querySelectorAll("#pareto-figures figcaption button").forEach(b => b.click());
    })()""")
    svg, name, csv, csv_name, *_ = page.evaluate("Promise.all(window.saved)")
    assert name == "l0-and-fvu.svg"
    assert (
        page.evaluate(
            f"new DOMParser().parseFromString({json.dumps(svg)}, 'image/svg+xml').documentElement.tagName"
        )
        == "svg"
    )
    assert "var(" not in svg
    results = json.loads((run_dir / "results.json").read_text())
    assert csv_name == "l0-and-fvu.csv"
    for line, sae in zip(csv.splitlines()[1:], results["saes"], strict=True):
        assert [float(v) for v in line.split(",")[-2:]] == [sae["codes"]["l0"], sae["normalized"]["fvu"]]
        quoted = sae["name"].replace('"', '""')
        assert line.startswith(f'"{quoted}",')
