"""``kill -9`` at every request of a command, then the same command again, then another one on the same place.

The client dies in one of two moments of its request n: before the store sees the request, or after the store
has done what it asks and before the client has the answer. n goes up until the command ends unharmed.
"""

import threading
from collections.abc import Callable, Sequence
from itertools import count

from .clients import Client
from .commands import EXTEND, HARVEST, LS, PUBLISH, PULL, PUSH, RM, VERIFY, Command
from .outcomes import RECOVERED, Outcomes, Row
from .world import Place, World, complaint

MOMENTS = ("before request n", "after request n")
Recovery = Callable[[Place, Command, int], str]
"""Gives commands at the place of a killed command, whose request is the last argument; what is wrong."""
FOLLOWING = {"push": (RM, PUSH), "harvest": (RM, HARVEST), "rm": (PUSH, RM), "extend": (RM, EXTEND)}
"""By killed command: (another command that is given instead of the same, the one that must work after it)."""
_AFTERWARDS = {"rm": (PUSH,), "publish": (PUBLISH,)}
"""By killed command: those of which one is given when the same has ended, where not all make sense."""


def kill_at(place: Place, command: Command, request: int, moment: str) -> Client:
    """Run ``command``, whose client dies at its ``request``-th request; it may end before."""
    proxy, lock, seen = place.world.proxy, threading.Lock(), count(1)
    started = threading.Event()
    clients: list[Client] = []

    def die(method: str, path: str) -> None:
        with lock:
            if next(seen) != request:
                return
        started.wait()
        clients[0].kill()
        raise ConnectionAbortedError("the client is dead")  # its request goes no further

    proxy.clear()
    setattr(proxy, moment.split()[0], die)
    clients.append(place.start(command.words(place)))
    started.set()
    place.world.clients.wait(clients[0])
    place.world.quiet()
    proxy.clear()
    return clients[0]


def run_kills(
    world: World, outcomes: Outcomes, commands: Sequence[Command], *, first: int, every: int
) -> None:
    """Kill at every ``every``-th request of every command, beginning with request ``first``."""
    for command in commands:
        ways: list[tuple[str, str, Recovery, int]] = [
            (MOMENTS[0], "the same again", _recover, every),
            (MOMENTS[1], "the same again", _recover, every),
            (MOMENTS[0], "the same, killed too, and again", _recover_after_another_kill, 3 * every),
        ]
        if command.name in FOLLOWING:
            names = " and then ".join(following.name for following in FOLLOWING[command.name])
            ways.append((MOMENTS[1], f"{names} instead", _recover_instead, every))
        for moment, then, recovery, step in ways:
            row = Row("kills", command.name, f"{moment}; {then}")
            for request in count(first, step):
                if not _kill_once(world, outcomes, row, command, moment, request, recovery):
                    break


def _kill_once(
    world: World,
    outcomes: Outcomes,
    row: Row,
    command: Command,
    moment: str,
    request: int,
    recovery: Recovery,
) -> bool:
    """Whether there was such a request."""
    place = world.new_place()
    killed = True
    try:
        command.prepare(place)
        client = kill_at(place, command, request, moment)
        killed = client.status == -9
        if killed:
            problem = recovery(place, command, request)
        else:
            problem = complaint(client) or command.problem(place, client)
    except (TimeoutError, ValueError) as error:
        problem = str(error)
    if problem:
        outcomes.fail(world.store.name, row, problem, request=request, killed=killed)
    elif killed:
        outcomes.add(world.store.name, row, RECOVERED)
    place.remove()
    return killed


def _recover(place: Place, command: Command, request: int) -> str:
    """``ls``, the same command, and one other; what is wrong."""
    listing = place.run(LS.words(place), directly=True)
    if listing.status != 0 or complaint(listing):
        return f"ls: {complaint(listing) or listing.errors}"
    again = place.run(command.words(place), directly=True)
    problem = complaint(again) or command.problem(place, again)
    if problem:
        return f"the same command: {problem}"
    others = _AFTERWARDS.get(command.name, (VERIFY, LS, PULL, RM, PUSH))
    other = others[request % len(others)]
    client = place.run(other.words(place), directly=True)
    problem = complaint(client) or other.problem(place, client)
    return f"{other.name} afterwards: {problem}" if problem else ""


def _recover_after_another_kill(place: Place, command: Command, request: int) -> str:
    """As :func:`_recover`, after the same command was killed again at another of its requests."""
    second = kill_at(place, command, 1 + 7 * request % 40, MOMENTS[1])
    if second.status != -9 and (problem := complaint(second) or command.problem(place, second)):
        return f"the second time: {problem}"
    return _recover(place, command, request)


def _recover_instead(place: Place, command: Command, request: int) -> str:
    """Another command in the place of the same, and one more; what is wrong."""
    for following in FOLLOWING[command.name]:
        client = place.run(following.words(place), directly=True)
        problem = complaint(client) or following.problem(place, client)
        if problem:
            return f"{following.name}: {problem}"
    return ""
