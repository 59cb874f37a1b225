"""The whole interpretation against a judge that reads: scores, controls, what is missing, what it costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from saecache.common.errors import UsageError
from saecache.evaluate.judge.failures import EndpointError
from saecache.evaluate.results import Interpretation, read_results

from .conftest import SMALL, WIDTH, WORDS, Ask
from .judge_server import Judge, Request, content, explain, saying, status

FEW_CALLS: dict[str, Any] = {  # all latents, with two calls for each
    "num_latents": None,
    "calibration": None,
    "fuzzing": "none",
    "windows": SMALL["windows"] | {"score": 10, "per_prompt": 20},
}


def interpretation(folder: Path, name: str = "plain") -> Interpretation:
    results = read_results(folder / "results.json")
    found = next(sae.interpretation for sae in results.saes if sae.name == name)
    assert found is not None
    return found


def test_true_explanations_score_high(ask: Ask, run_folder: Path, judge: Judge) -> None:
    done = ask()
    found = interpretation(run_folder)
    assert done.made == len(judge.posts) == done.estimate.calls
    assert len(found.latents) == 3
    for latent in found.latents:
        assert latent.explanation == f'one of ["{WORDS[latent.index]}"]'
        assert latent.detection is not None and latent.fuzzing is not None
        assert latent.detection.true_negative_rate == 1  # an inactive window never has the latent's word
        assert latent.detection.strata[-3:] == [1, 1, 1]  # the strongest activations are the word
        assert latent.detection.unanswered == 0 and latent.detection.answered == 40
        assert latent.fuzzing.strata[-3:] == [1, 1, 1]
        assert latent.detection.interval is not None
        low, high = latent.detection.interval
        assert low < latent.detection.balanced_accuracy < high
    assert found.detection is not None and found.fuzzing is not None
    assert 0.72 < found.detection.mean < 0.95
    assert found.detection.num_latents == 3
    assert found.unanswered == {"explanation": 0, "score": 0}


def test_explanations_of_other_latents_score_at_chance(ask: Ask, run_folder: Path, judge: Judge) -> None:
    """The control: the judge reads as well as before, but gets each latent's words from another one."""
    judge.explain = lambda prompt: _shifted(explain(prompt))
    ask(num_latents=12, calibration=None)
    found = interpretation(run_folder)
    assert found.detection is not None and found.fuzzing is not None
    assert abs(found.detection.mean - 0.5) < 0.06
    assert abs(found.fuzzing.mean - 0.5) < 0.06


def _shifted(text: str) -> str:
    for i, word in enumerate(WORDS):
        if f'"{word}"' in text:
            return f'EXPLANATION: one of ["{WORDS[(i + 7) % WIDTH]}"]'
    return text


def test_calibration_finds_that_strong_activations_mean_more(ask: Ask, run_folder: Path) -> None:
    """By how the cache is made: weak activations are any words, strong ones are the latent's word."""
    ask(num_latents=12, detection=False, fuzzing="none")
    calibration = interpretation(run_folder).calibration
    assert calibration is not None
    means = [bucket.mean for bucket in calibration.buckets]
    assert all(mean is not None for mean in means)
    assert means[-1] == 1.0 and means[-2] == 1.0
    assert abs(means[0] - 0.5) < 0.1
    assert [bucket.low for bucket in calibration.buckets] == [0, 20, 40, 60, 80]
    assert calibration.correlation is not None and calibration.interval is not None
    assert 0.7 < calibration.interval[0] < calibration.correlation < calibration.interval[1] < 1
    assert calibration.num_latents == 12


def test_the_harder_fuzzing_shows_active_windows_only(ask: Ask, judge: Judge) -> None:
    ask(fuzzing="active", detection=False, calibration=None, num_latents=1)
    plain = {}
    for request in judge.posts:
        if not request.asks_for_explanation:
            for line in request.prompt.splitlines():
                if line.startswith("Excerpt"):
                    text = line.partition(": ")[2]
                    plain.setdefault(text.replace("<<", "").replace(">>", ""), set()).add(text)
    assert plain and all(len(marks) == 2 for marks in plain.values())  # each rightly and wrongly marked


def test_results_are_the_same_bytes_and_nothing_is_asked_again(
    ask: Ask, run_folder: Path, judge: Judge
) -> None:
    before = (run_folder / "results.json").read_bytes()
    first = ask()
    bytes_ = (run_folder / "results.json").read_bytes()
    assert bytes_ != before and first.made > 0
    asked = len(judge.requests)
    again = ask(endpoint={"url": "http://127.0.0.1:1/v1"})  # where nobody listens
    assert (run_folder / "results.json").read_bytes() == bytes_
    assert again.made == 0 and again.estimate.calls == 0 and again.estimate.answered == first.estimate.calls
    assert len(judge.requests) == asked


def test_names_of_saes_in_results_of_others(ask: Ask, run_folder: Path) -> None:
    results = json.loads((run_folder / "results.json").read_text())
    for name, message in (
        ("x" * 100_000, "no results of plain; it has .*xxx"),
        ("mixed", "several SAEs"),
    ):
        next(sae for sae in results["saes"] if sae["name"] != "mixed")["name"] = name
        (run_folder / "results.json").write_text(json.dumps(results))
        with pytest.raises(UsageError, match=message) as caught:
            ask()
        assert len(str(caught.value)) < 10_000


def test_other_results_stay(ask: Ask, run_folder: Path) -> None:
    before = json.loads((run_folder / "results.json").read_text())
    ask("mixed")
    after = json.loads((run_folder / "results.json").read_text())
    for sae in after["saes"]:
        assert (sae.pop("interpretation") is None) == (sae["name"] == "plain")
    for sae in before["saes"]:
        sae.pop("interpretation")
    assert after["saes"] == before["saes"] and after["cache"] == before["cache"]
    assert set(after["definitions"]) > set(before["definitions"])


def test_settings_are_recorded_without_places_and_keys(
    ask: Ask, run_folder: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAECACHE_JUDGE_KEY", "sk-very-secret")
    ask()
    assert judge.posts[0].headers["Authorization"] == "Bearer sk-very-secret"
    for path in run_folder.rglob("*"):
        if path.is_file():
            assert b"sk-very-secret" not in path.read_bytes(), path
    found = interpretation(run_folder)
    assert judge.url not in (run_folder / "results.json").read_text()
    assert found.judge == "reader-1" and found.settings["windows"]["tokens"] == 8
    assert found.settings["endpoint"]["temperature"] == 0
    assert "price" not in found.settings


def test_an_answer_that_cannot_be_read_is_asked_for_again_in_the_conversation(
    ask: Ask, run_folder: Path, judge: Judge
) -> None:
    judge.faults = [saying("I would rather not say.")]
    ask(num_latents=1, calibration=None, fuzzing="none", endpoint={"concurrency": 1})
    first, second = judge.posts[:2]
    assert second.body["messages"][:2] == first.body["messages"]
    assert [message["role"] for message in second.body["messages"]] == ["system", "user", "assistant", "user"]
    assert second.body["messages"][2]["content"] == "I would rather not say."
    assert "EXPLANATION:" in second.body["messages"][3]["content"]
    assert interpretation(run_folder).latents[0].explanation is not None


@pytest.mark.parametrize(
    "fault",
    [
        saying("[1, 0]"), saying("[1, 0, 2, 1]"), saying(None), saying("1 0 1 1"), saying("[0.5, 1, 0, 1]"),
        saying("[1, 0, 1, 1", "length"), content({"error": "overloaded"}), content([1]), content(b"<html>"),
        content({"choices": []}), content({"choices": [{"message": {"content": 7}}]}),
    ],
    ids=[
        "too few", "a 2", "no text", "no list", "no marks", "cut", "wrong JSON", "a list", "HTML",
        "no choice", "a number",
    ],
)  # fmt: skip
def test_unreadable_scores_are_unanswered_and_never_scored(
    ask: Ask, run_folder: Path, judge: Judge, fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge answers explanations, and nonsense to every second scoring prompt."""
    monkeypatch.setattr("saecache.evaluate.judge.endpoint._FIRST_PAUSE_SECONDS", 0.001)
    asked: dict[str, bool] = {}

    def every_second(handler, request: Request) -> bool:
        if request.asks_for_explanation:
            return False
        with judge.lock:
            asked.setdefault(request.prompt, len(asked) % 2 == 0)
        return asked[request.prompt] and fault(handler, request)

    judge.always = every_second
    ask(num_latents=1, calibration=None, fuzzing="none", endpoint={"concurrency": 1})
    found = interpretation(run_folder)
    score = found.latents[0].detection
    assert score is not None and found.detection is not None
    assert (score.answered, score.unanswered) == (20, 20)
    assert found.unanswered == {"explanation": 0, "score": 5} and found.detection.unanswered == 20
    assert score.true_negative_rate == 1
    bad = [request.prompt for request in judge.posts if asked.get(request.prompt)]
    assert len(bad) == 5 * 3  # each was asked once and repaired twice


def test_a_latent_without_explanation_has_no_scores(ask: Ask, run_folder: Path, judge: Judge) -> None:
    judge.always = lambda handler, request: (
        request.asks_for_explanation and saying("EXPLANATION: ")(handler, request)
    )
    ask(num_latents=2, calibration=None)
    found = interpretation(run_folder)
    assert found.unanswered == {"explanation": 2, "score": 0} and found.detection is None
    for latent in found.latents:
        assert latent.explanation is None and latent.detection is None
        assert latent.note == "the judge gave no readable explanation"


def test_a_server_that_refuses_everything_ends_the_run(ask: Ask, judge: Judge) -> None:
    judge.always = status(400, "this model takes no system prompt")
    with pytest.raises(EndpointError, match=r"refused 10 calls one after the other.*no system prompt"):
        ask(endpoint={"concurrency": 2})
    assert len(judge.posts) <= 10 + 1  # the other call that was under way


def test_a_few_refused_calls_are_unanswered(ask: Ask, run_folder: Path, judge: Judge) -> None:
    refused = status(400, "the prompt was filtered")
    judge.faults = [lambda handler, request: False, *[refused] * 3]
    ask(num_latents=1, calibration=None, fuzzing="none", endpoint={"concurrency": 1})
    found = interpretation(run_folder)
    assert found.unanswered == {"explanation": 0, "score": 3}
    again = ask(num_latents=1, calibration=None, fuzzing="none")
    assert again.made == 3  # refusals are not stored: they may be gone
    assert interpretation(run_folder).unanswered == {"explanation": 0, "score": 0}


def test_what_it_costs_is_said_before_it_begins(ask: Ask, run_folder: Path, judge: Judge) -> None:
    said: list[str] = []
    price = {"prompt_per_million": 1000, "completion_per_million": 2000}
    done = ask(dry_run=True, price=price, say=said.append)
    assert judge.requests == [] and done.results is None
    assert not (run_folder / "judge_answers").exists()
    # an explanation and 10 calls for each of detection and fuzzing; an explanation and 3 calls a bucket
    assert (done.estimate.explanations, done.estimate.scores) == (3 * 6, 3 * (20 + 5 * 3))
    assert f"{3 * 41:,} calls" in said[0] and "one for 4 bytes" in said[0]
    cost = done.estimate.prompt_tokens / 1000 + done.estimate.completion_tokens / 500
    assert f"about {cost:,.2f} at the given prices" in said[0]
    for part in ("--- explanation, latent", "--- detection, latent", "--- fuzzing, latent", "[system]"):
        assert part in done.sample
    ask()
    real = sum(len(m["content"].encode()) for request in judge.posts for m in request.body["messages"])
    assert done.estimate.prompt_tokens == pytest.approx(real / 4, rel=0.3)


def test_more_than_allowed_is_refused(ask: Ask, judge: Judge) -> None:
    with pytest.raises(
        UsageError, match=r"would need 123 calls.*more than max_calls=122.*--set max_calls=123"
    ):
        ask(max_calls=122)
    with pytest.raises(UsageError, match=r"more than max_tokens=1,000"):
        ask(max_tokens=1000)
    assert {request.path for request in judge.requests} == {"/v1/models"}  # which costs nothing


def test_what_is_answered_does_not_count(ask: Ask) -> None:
    ask(num_latents=1)
    done = ask(num_latents=2, max_calls=41)
    assert done.estimate.answered == 41 and done.made == 41


def test_bad_input_is_said_before_work(
    ask: Ask, run_folder: Path, word_cache, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_rows(*_args: object, **_options: object) -> None:
        raise AssertionError("no row should be read")

    with monkeypatch.context() as patch:
        patch.setattr("saecache.evaluate.judge.runner.survey_latents", read_rows)
        with pytest.raises(UsageError, match=r"no judge answers at http://127.0.0.1:1/v1"):
            ask(endpoint={"url": "http://127.0.0.1:1/v1"})
        with pytest.raises(
            UsageError, match=r"has no model 'reader-2' \(did you mean 'reader-1'\?\).*check_model"
        ):
            ask(endpoint={"model": "reader-2"})
    with pytest.raises(UsageError, match=r"which judge\? Give --endpoint URL"):
        ask(endpoint={"url": None})
    with pytest.raises(UsageError, match=f"has latents 0 to {WIDTH - 1}, and latents names 999"):
        ask(latents=[3, 999])
    windows = SMALL["windows"] | {"least": 100_000}
    with pytest.raises(
        UsageError, match=r"no latent of SAE plain can be judged.*expected 100,000.*windows.least"
    ):
        ask(windows=windows)
    (run_folder / "results.json").rename(run_folder / "elsewhere.json")
    with pytest.raises(UsageError, match="no results at"):
        ask()
    assert judge.posts == []


def test_latents_with_too_few_windows_are_named_and_counted(ask: Ask, run_folder: Path, judge: Judge) -> None:
    """Of the named latents only those that are active often enough are judged; the others are named."""
    every = ask(num_latents=None, dry_run=True)
    assert every.estimate.explanations == WIDTH * 6
    by_windows = sorted((latent.num_windows, latent.index) for latent in _all_latents(ask, run_folder))
    least = by_windows[WIDTH // 2][0] + 1
    rare, frequent = by_windows[0][1], by_windows[-1][1]
    ask(latents=[rare, frequent], windows=SMALL["windows"] | {"least": least}, calibration=None)
    found = interpretation(run_folder)
    assert [latent.index for latent in found.latents] == [frequent]
    assert [one.index for one in found.skipped] == [rare]
    assert f"active in {by_windows[0][0]} windows, expected {least} or more" in found.skipped[0].reason
    assert found.too_few_windows == sum(count < least for count, _ in by_windows)
    assert found.alive == WIDTH


def _all_latents(ask: Ask, run_folder: Path):
    ask(**FEW_CALLS)
    return interpretation(run_folder).latents


def test_a_model_list_is_not_needed(ask: Ask, judge: Judge) -> None:
    judge.models = None
    assert ask(num_latents=1, calibration=None).made > 0


def test_drawn_latents_depend_on_the_seed_only(ask: Ask, run_folder: Path) -> None:
    def drawn(**settings: object) -> list[int]:
        ask(**(FEW_CALLS | {"num_latents": 5} | settings))
        return [latent.index for latent in interpretation(run_folder).latents]

    first = drawn()
    assert first == drawn(rows_per_block=77) == sorted(first)
    assert first != drawn(seed=1)


def test_blocks_of_other_sizes_show_the_same_windows(ask: Ask, judge: Judge, tmp_path: Path) -> None:
    ask(rows_per_block=4096, num_latents=1)
    asked = {request.prompt for request in judge.posts}
    judge.requests.clear()
    ask(rows_per_block=61, num_latents=1, answers=tmp_path / "others")
    assert {request.prompt for request in judge.posts} == asked


def test_no_excerpt_is_explained_and_scored(ask: Ask, judge: Judge) -> None:
    """Of one latent; what the judge sees is compared as text."""
    for latent in (3, 30):
        judge.requests.clear()
        ask(latents=[latent])
        texts: dict[bool, set[str]] = {True: set(), False: set()}
        for request in judge.posts:
            for line in request.prompt.splitlines():
                if line.startswith("Excerpt"):
                    text = line.partition(": ")[2].replace("<<", "").replace(">>", "")
                    texts[request.asks_for_explanation].add(text)
        assert len(texts[True]) > 20 and len(texts[False]) > 60
        assert not texts[True] & texts[False]


def test_uniqueness_between_saes(ask: Ask, run_folder: Path) -> None:
    """The second SAE has the same latents in another order, so every latent has a perfect match."""
    ask("plain", "mixed", **FEW_CALLS, embeddings={"kind": "endpoint", "model": "reader-1"})
    results = read_results(run_folder / "results.json")
    assert [(one.a, one.b) for one in results.uniqueness] == [("plain", "mixed"), ("mixed", "plain")]
    order = np.random.default_rng(1).permutation(WIDTH)
    for one in results.uniqueness:
        assert one.mean_similarity > 0.97 and one.num_a == one.num_b == WIDTH
        for match in one.matches:
            word = order[match.match] if one.a == "plain" else match.match
            own = match.latent if one.a == "plain" else order[match.latent]
            assert word == own
            assert match.decoder == pytest.approx(1) and match.nearest_cosine == pytest.approx(1)
            assert match.similarity == pytest.approx((match.decoder + match.text) / 2)
        similarities = [match.similarity for match in one.matches]
        assert similarities == sorted(similarities)
