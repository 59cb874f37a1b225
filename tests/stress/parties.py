"""Two or three commands at once on one place, each with random pauses before its requests.

Whatever order they meet in: nobody hangs or ends with a stack trace, what opens as a cache is whole, and
afterwards a push, or a removal and a push, gives the right bytes with nothing left over.
"""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .clients import Client
from .commands import (
    PULL,
    PUSH,
    RM,
    TRAIN,
    harvest_words,
    judge_copy,
    pull_words,
    push_words,
    rm_words,
    train_words,
)
from .outcomes import AGAIN, RIGHT, Outcomes, Row
from .world import Place, World, complaint

_LONGEST_PAUSE = 0.03  # seconds


@dataclass(frozen=True)
class Meeting:
    """``words`` gives the commands. ``winners`` is how many of them must at least succeed."""

    name: str
    words: Callable[[Place], list[list[str]]]
    filled: bool = False
    winners: int = 0


MEETINGS = (
    Meeting("push, push", lambda p: [push_words(p), push_words(p)], winners=1),
    Meeting("push of another cache, push", lambda p: [push_words(p, "b"), push_words(p)], winners=1),
    Meeting("rm, push", lambda p: [rm_words(p), push_words(p)], filled=True),
    Meeting("rm, rm", lambda p: [rm_words(p), rm_words(p)], filled=True, winners=1),
    Meeting("rm, pull", lambda p: [rm_words(p), pull_words(p)], filled=True, winners=1),
    Meeting("rm, train", lambda p: [rm_words(p), train_words(p)], filled=True, winners=1),
    Meeting("pull, pull into one folder", lambda p: [pull_words(p)] * 2, filled=True, winners=1),
    Meeting("harvest, harvest", lambda p: [harvest_words(p), harvest_words(p, "scratch-2")]),
    Meeting("harvest, push", lambda p: [harvest_words(p), push_words(p)]),
    Meeting("harvest, rm", lambda p: [harvest_words(p), rm_words(p)]),
    Meeting("push, push, rm", lambda p: [push_words(p), push_words(p), rm_words(p)]),
    Meeting("push, rm, pull", lambda p: [push_words(p), rm_words(p), pull_words(p)], filled=True),
)


def run_parties(world: World, outcomes: Outcomes, *, rounds: int, seed: int) -> None:
    for meeting in MEETINGS:
        row = Row("parties", "rounds", meeting.name)
        for number in range(rounds):
            choose = random.Random(f"{seed} {world.store.name} {meeting.name} {number}")
            place = world.new_place()
            if meeting.filled:
                place.fill()
            try:
                problem, outcome = _meet(place, meeting, choose)
            except (TimeoutError, ValueError) as error:
                problem, outcome = str(error), RIGHT
            if problem:
                outcomes.fail(world.store.name, row, problem, round=number)
            else:
                outcomes.add(world.store.name, row, outcome)
            place.remove()


def _meet(place: Place, meeting: Meeting, choose: random.Random) -> tuple[str, str]:
    """(what is wrong, how it ended otherwise)."""
    world, lock = place.world, threading.Lock()

    def pause(method: str, path: str) -> None:
        with lock:
            seconds = choose.uniform(0, _LONGEST_PAUSE)
        time.sleep(seconds)

    world.proxy.clear()
    world.proxy.before = pause
    clients = [place.start(words) for words in meeting.words(place)]
    for client in clients:
        world.clients.wait(client)
    world.quiet()
    world.proxy.clear()
    problems = [problem for client in clients if (problem := complaint(client))]
    if problems:
        return problems[0], RIGHT
    won = [client for client in clients if client.status == 0]
    if len(won) < meeting.winners:
        return f"{len(won)} succeeded: {[client.errors[-200:] for client in clients]}", RIGHT
    problem = _half_visible(place) or _lost_result(place, won)
    return problem or _settle(place), RIGHT if len(won) == len(clients) else AGAIN


def _half_visible(place: Place) -> str:
    """What opens as a cache is the whole of one."""
    there = place.objects()
    if "zarr.json" not in there:
        return ""
    claims = {".unfinished.json", ".harvest.json"}
    differences = [place.difference(cache) for cache in place.world.caches]
    only_claims = any(there.keys() - claims == _keys(place, cache) for cache in place.world.caches)
    return "" if "" in differences or only_claims else f"opens and is not whole: {differences[0]}"


def _keys(place: Place, cache: str) -> set[str]:
    folder = place.world.caches[cache]
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def _lost_result(place: Place, won: list[Client]) -> str:
    """A pull and a run that succeeded have the right bytes, whatever became of the place."""
    for client in won:
        if client.words[0] == "train" and (problem := TRAIN.judge(place, client)):
            return f"train: {problem}"
        if client.words[1] == "pull" and (problem := judge_copy(place)):
            return f"pull: {problem}"
    return ""


def _settle(place: Place) -> str:
    """A push, or a removal and a push; then a pull, and a removal that leaves nothing."""
    client = place.run(push_words(place), directly=True)
    if client.status != 0:
        removed = place.run(rm_words(place), directly=True)
        if problem := complaint(removed) or RM.problem(place, removed):
            return f"rm afterwards: {problem}"
        client = place.run(push_words(place), directly=True)
    for command in (PUSH, PULL, RM):
        if command is not PUSH:
            client = place.run(command.words(place), directly=True)
        if problem := complaint(client) or command.problem(place, client):
            return f"{command.name} afterwards: {problem}"
    return ""
