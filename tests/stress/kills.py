"""``kill -9`` at every request of a command, then the same command again, then another one on the same place.

The client dies in one of two moments of its request n: before the store sees the request, or after the store
has done what it asks and before the client has the answer. n goes from 1 until the command ends unharmed.
"""

import threading
from itertools import count

from .clients import Client
from .commands import HARVEST, KILLED, LS, PULL, PUSH, RM, VERIFY, Command
from .outcomes import RECOVERED, Outcomes, Row
from .world import Place, World, complaint

MOMENTS = ("before request n", "after request n")
FOLLOWING = {"push": (RM, PUSH), "harvest": (RM, HARVEST), "rm": (PUSH, RM)}
"""By killed command: (another command that is given instead of the same, the one that must work after it)."""


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


def run_kills(world: World, outcomes: Outcomes, *, every: int, offset: int) -> None:
    """Kill every ``every``-th request of every command, beginning with ``offset`` + 1."""
    for command in KILLED:
        for moment in MOMENTS:
            _kill_each(world, outcomes, command, moment, every, offset, instead=False)
        if command.name in FOLLOWING:
            _kill_each(world, outcomes, command, MOMENTS[1], every, offset, instead=True)


def _kill_each(
    world: World, outcomes: Outcomes, command: Command, moment: str, every: int, offset: int, *, instead: bool
) -> None:
    another = (
        f"{FOLLOWING[command.name][0].name} and then {FOLLOWING[command.name][1].name}" if instead else ""
    )
    row = Row("kills", command.name, f"{moment}; {another or 'the same'} again")
    for request in count(1 + offset % every, every):
        place = world.new_place()
        try:
            command.prepare(place)
            client = kill_at(place, command, request, moment)
            if client.status != -9:
                problem = complaint(client) or command.problem(place, client)
                if problem:
                    outcomes.fail(world.store.name, row, f"unharmed: {problem}", request=request)
                return
            problem = _recover_instead(place, command) if instead else _recover(place, command, request)
            if problem:
                outcomes.fail(world.store.name, row, problem, request=request)
            else:
                outcomes.add(world.store.name, row, RECOVERED)
        except (TimeoutError, ValueError) as error:
            outcomes.fail(world.store.name, row, str(error), request=request)
        place.remove()


def _recover(place: Place, command: Command, request: int) -> str:
    """``ls``, the same command, and one other; what is wrong."""
    listing = place.run(LS.words(place), directly=True)
    if listing.status != 0 or complaint(listing):
        return f"ls: {complaint(listing) or listing.errors}"
    again = place.run(command.words(place), directly=True)
    problem = complaint(again) or command.problem(place, again)
    if problem:
        return f"the same command: {problem}"
    others = (PUSH,) if command is RM else (VERIFY, LS, PULL, RM, PUSH)
    other = others[request % len(others)]
    client = place.run(other.words(place), directly=True)
    problem = complaint(client) or other.problem(place, client)
    return f"{other.name} afterwards: {problem}" if problem else ""


def _recover_instead(place: Place, command: Command) -> str:
    """Another command in the place of the same, and one more; what is wrong."""
    for following in FOLLOWING[command.name]:
        client = place.run(following.words(place), directly=True)
        problem = complaint(client) or following.problem(place, client)
        if problem:
            return f"{following.name}: {problem}"
    return ""
