"""Seeded rounds of one fault each, at a random request of every command."""

import random
from collections.abc import Sequence
from typing import Any

from .commands import Command
from .outcomes import AGAIN, RIGHT, Outcomes, Row
from .world import Place, World, complaint

_OBJECT = r"^/[^?]*[^?/]$"  # not a listing: a changed letter in one is a well-formed lie that nobody can see
FAULTS: dict[str, dict[str, Any]] = {
    "500": {"kind": "status", "status": 500},
    "503 SlowDown": {"kind": "status", "status": 503, "code": "SlowDown"},
    "429": {"kind": "status", "status": 429, "code": "TooManyRequests"},
    "reset before the answer": {"kind": "reset", "after": 0},
    "reset in the body": {"kind": "reset", "after": 60},
    "body cut": {"kind": "truncate", "after": 60},
    "body shorter than it was": {"kind": "short", "after": 60},
    "body stalls": {"kind": "stall", "after": 60, "seconds": 1},
    "no answer": {"kind": "silence", "seconds": 1},
    "lost answer": {"kind": "lost_answer"},
    "a wrong byte down": {"kind": "flip", "after": 40, "method": "GET", "path": _OBJECT},
    "a wrong byte up": {"kind": "flip_request", "after": 40, "method": "PUT", "path": _OBJECT},
    "another ETag": {"kind": "etag"},
    "not HTTP": {"kind": "garbage"},
    "a page for people": {"kind": "page"},
    "200 and nothing": {"kind": "empty"},
    "a listing without end": {"kind": "endless", "path": "list-type"},
}
LONG = {  # these use up the patience of a request: half a minute each
    "stalls for longer than patience": {"kind": "stall", "after": 60, "seconds": 45, "method": "GET"},
    "a byte now and then": {"kind": "trickle", "seconds": 0.5, "method": "GET"},
}


def count_requests(world: World, command: Command) -> list[tuple[str, str]]:
    """The requests of a run without faults: (method, path)."""
    place = world.new_place()
    command.prepare(place)
    world.proxy.clear()
    client = place.run(command.words(place))
    requests = [(seen.method, seen.path) for seen in world.proxy.seen]
    problem = complaint(client) or command.problem(place, client)
    if problem:
        raise RuntimeError(f"{command.name} fails without any fault: {problem}")
    place.remove()
    return requests


def run_faults(
    world: World, outcomes: Outcomes, commands: Sequence[Command], *, rounds: int, seed: int, long: bool
) -> None:
    """``rounds`` rounds for every command and fault; a fault that met no request does not count."""
    for command in commands:
        requests = count_requests(world, command)
        for name, fault in (FAULTS | (LONG if long else {})).items():
            for number in range(1 if name in LONG else rounds):
                choose = random.Random(f"{seed} {world.store.name} {command.name} {name} {number}")
                _round(world, outcomes, command, name, fault, len(requests), choose)


def _round(
    world: World,
    outcomes: Outcomes,
    command: Command,
    name: str,
    fault: dict[str, Any],
    requests: int,
    choose: random.Random,
) -> None:
    settings = {"skip": choose.randrange(requests), "times": choose.choice([1, 1, 2, 3])}
    if name in LONG or "path" in fault:  # few requests are of this kind
        settings = {"skip": choose.randrange(1 + requests // 8), "times": 1}
    row = Row("faults", command.name, name)
    place = world.new_place()
    command.prepare(place)
    world.proxy.clear()
    met = world.proxy.add(**fault, **settings)
    try:
        client = place.run(command.words(place))
        world.quiet()
        world.proxy.clear()
        problem, outcome = _judge(place, command, client)
    except (TimeoutError, ValueError) as error:
        problem, outcome = str(error), RIGHT
    if problem:
        outcomes.fail(world.store.name, row, problem, **settings)
    elif met.met:
        outcomes.add(world.store.name, row, outcome)
    place.remove()


def _judge(place: Place, command: Command, client: Any) -> tuple[str, str]:
    """(what is wrong, how it ended otherwise)."""
    if problem := complaint(client):
        return problem, RIGHT
    if client.status == 0:
        return command.problem(place, client), RIGHT
    again = place.run(command.words(place), directly=True)
    problem = complaint(again) or command.problem(place, again)
    if problem:
        return f"after the error {client.errors.strip()[-200:]!r} the same command: {problem}", AGAIN
    return "", AGAIN
