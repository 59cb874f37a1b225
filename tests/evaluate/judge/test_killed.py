"""Interpretations that are killed or interrupted; they and the judge are processes of their own."""

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saecache.evaluate.results import read_results
from saecache.store.reading.reader import ActivationCache
from tests.killing import DEADLINE_SECONDS, killed_runs

from . import judge_server
from .conftest import Ask

ROOT = Path(__file__).parents[3]
CONCURRENCY, CALLS = 4, 123
WORK = """
import itertools, os, signal, sys
from pathlib import Path
from saecache.evaluate.judge import InterpretConfig, interpret
from saecache.evaluate.judge.answers import AnswerFolder
from saecache.store import open_cache
from tests.evaluate.judge.conftest import SMALL, decode

def work(run, cache, url, num_answers, number=signal.SIGKILL):
    '''Interpret, and be killed, or told to stop, once so many answers are stored.'''
    put, stored = AnswerFolder.put, itertools.count(1)

    def put_and_die(self, request, answer):
        put(self, request, answer)
        if next(stored) == num_answers:
            os.kill(os.getpid(), number)

    AnswerFolder.put = put_and_die
    endpoint = {"url": url, "model": "reader-1", "concurrency": 4}
    config = InterpretConfig.model_validate(SMALL | {"endpoint": endpoint})
    interpret(
        [Path(run) / "plain" / "sae"], open_cache(cache), config, decode,
        results=Path(run) / "results.json", show_progress=False,
    )
"""
WORK_UNTIL_INTERRUPTED = (
    WORK
    + """
from saecache.commands.border import end_at_once, note_interrupts

note_interrupts()
try:
    work(*sys.argv[1:], 30, signal.SIGINT)
except KeyboardInterrupt:
    end_at_once()
"""
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a judge in a process of its own that takes its time, and its log of requests."""
    port, log = tmp_path / "port", tmp_path / "log"
    log.touch()
    command = [sys.executable, judge_server.__file__, str(port), str(log), "0.02"]
    with subprocess.Popen(command) as process:
        try:
            wait_for(port.exists)
            yield port.read_text(), log
        finally:
            process.kill()


def wait_for(moment: Callable[[], object]) -> None:
    until = time.monotonic() + DEADLINE_SECONDS
    while not moment():
        assert time.monotonic() < until, "it hangs"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_run_makes_the_missing_calls_only(
    run_folder: Path, word_cache: ActivationCache, served: tuple[str, Path], ask: Ask
) -> None:
    url, log = served
    results, answers = run_folder / "results.json", run_folder / "judge_answers"
    with killed_runs(WORK) as run:
        for num_answers in (2, 20, 40):  # among the explanations, and twice among the scores
            status = run(str(run_folder), str(word_cache.path), url, num_answers, seconds=DEADLINE_SECONDS)
            assert status == -9
    assert read_results(results).saes[0].interpretation is None
    stored = len(list(answers.rglob("*.json")))
    assert 2 + 20 + 40 <= stored < CALLS
    done = ask(endpoint={"url": url, "stored_as": None})
    assert done.made == CALLS - stored
    requests = Counter(log.read_text().splitlines())
    assert len(requests) == CALLS
    # asked twice were only those that were under way when a process was killed
    assert sum(requests.values()) - len(requests) <= 3 * CONCURRENCY
    after_killing = results.read_bytes()
    for entry in answers.rglob("*.json"):
        entry.unlink()
    assert ask(endpoint={"url": url, "stored_as": None}).made == CALLS
    assert results.read_bytes() == after_killing


@pytest.mark.slow
def test_ctrl_c_ends_at_once_and_keeps_the_answers(
    run_folder: Path, word_cache: ActivationCache, served: tuple[str, Path], ask: Ask
) -> None:
    url, _ = served
    command = [sys.executable, "-c", WORK_UNTIL_INTERRUPTED, str(run_folder), str(word_cache.path), url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, timeout=DEADLINE_SECONDS)
    assert done.returncode == 130, done.stderr
    stored = len(list((run_folder / "judge_answers").rglob("*.json")))
    assert 30 <= stored < CALLS
    assert ask(endpoint={"url": url, "stored_as": None}).made == CALLS - stored
