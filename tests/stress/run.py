"""The stress run: ``python -m tests.stress.run --out FOLDER``. Ends with status 1 if anything ended wrong.

Real processes against real servers through the proxy of the tests, which breaks, delays and counts requests.
The numbers of rounds are fixed by the options and the choices by the seed, so a run may take any time.
"""

import argparse
import hashlib
import signal
import sys
import tempfile
import time
from pathlib import Path

import saecache

from .clients import Clients
from .commands import COMMANDS, KILLED, Command
from .faults import run_faults
from .kills import run_kills
from .outcomes import Outcomes, facts_of_this_run
from .parties import run_parties
from .stores import PROGRAMS, running_store
from .world import World, make_world, open_world

STORES = ("seaweedfs", *PROGRAMS)
SECTIONS = ("kills", "faults", "parties")
_CODE = ("commands", "common", "configs", "evaluate", "harvest", "publishing", "store", "train")


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers and folders go all the same
    words = ["python", "-m", "tests.stress.run", *shown_words()]
    outcomes = Outcomes(facts_of_this_run(" ".join(words), arguments.seed, arguments.stores))
    started = time.monotonic()
    finished, code = False, code_digest()
    try:
        with tempfile.TemporaryDirectory(prefix="saecache-stress-") as temporary:
            run_on_each_store(arguments, outcomes, Path(temporary))
        if code_digest() != code:  # commands that import late would mix two versions
            raise SystemExit(
                "the code of saecache changed during the run: its outcomes mean nothing, run again"
            )
        finished = True
    finally:  # a run that is stopped shows what it has done
        outcomes.facts["minutes"] = round((time.monotonic() - started) / 60, 1)
        outcomes.facts["finished"] = "yes" if finished else "no"
        outcomes.write(arguments.out)
    print(outcomes.markdown())
    return 1 if outcomes.failures else 0


def code_digest() -> str:
    """The sha256 of every module of saecache."""
    digest = hashlib.sha256()
    for folder in _CODE:
        for path in sorted((Path(saecache.__file__).parent / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def run_on_each_store(arguments: argparse.Namespace, outcomes: Outcomes, folder: Path) -> None:
    clients = Clients(folder)
    made = make_world(clients, folder)
    for name in arguments.stores:
        with (
            running_store(name, folder / name) as store,
            open_world(store, clients, folder, made) as world,
        ):
            run_sections(world, outcomes, arguments)
    clients.close()


def run_sections(world: World, outcomes: Outcomes, arguments: argparse.Namespace) -> None:
    def chosen(commands: tuple[Command, ...]) -> list[Command]:
        return [command for command in commands if command.name in arguments.commands]

    if "kills" in arguments.sections:
        first, every = arguments.kill_from, arguments.kill_every
        run_kills(world, outcomes, chosen(KILLED), first=first + arguments.seed % every, every=every)
    if "faults" in arguments.sections:
        run_faults(
            world,
            outcomes,
            chosen(COMMANDS),
            rounds=arguments.rounds,
            seed=arguments.seed,
            long=arguments.long,
        )
    if "parties" in arguments.sections:
        run_parties(world, outcomes, rounds=arguments.meetings, seed=arguments.seed)


def shown_words() -> list[str]:
    """The options as given, without the folder of this machine."""
    words = sys.argv[1:]
    if "--out" in words:
        at = words.index("--out")
        words = words[:at] + words[at + 2 :]
    return words


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.stress.run", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="decides every random choice")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=STORES[:1])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    names = [command.name for command in COMMANDS]
    parser.add_argument("--commands", nargs="+", choices=names, default=names, help="for kills and faults")
    parser.add_argument("--kill-every", type=int, default=1, metavar="N", help="kill at every N-th request")
    parser.add_argument("--kill-from", type=int, default=1, metavar="N", help="the first request to kill at")
    parser.add_argument("--rounds", type=int, default=4, help="for each command and fault")
    parser.add_argument("--meetings", type=int, default=6, help="rounds for each meeting of several commands")
    parser.add_argument("--long", action="store_true", help="also faults that use up half a minute each")
    parser.add_argument(
        "--out", type=Path, default=Path("build/stress"), help="for stress.json and stress.md"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
