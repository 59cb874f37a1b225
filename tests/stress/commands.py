"""The commands under stress: how each is prepared, typed, and judged when it says that it succeeded."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from .clients import Client
from .world import EXTENDED, Place, difference, files_of, measures_of, sae_of


@dataclass(frozen=True)
class Command:
    """``judge`` returns what is wrong at the place after exit status 0, or ""."""

    name: str
    words: Callable[[Place], list[str]]
    judge: Callable[[Place, Client], str]
    needs_cache: bool = True
    cache: str = "a"  # the one that the place holds before it, or after it

    def prepare(self, place: Place) -> None:
        place.cache = self.cache
        if self.needs_cache:
            place.fill()

    def problem(self, place: Place, client: Client) -> str:
        """What is wrong once ``client`` has ended; "" if it did all that it was to do."""
        if client.status == 0:
            return self.judge(place, client)
        if self.name == "rm" and "no cache at" in client.errors and not place.objects():
            return ""  # the killed command had removed everything
        return f"exit status {client.status}: {client.errors.strip()[-300:]}"


def _judge_whole(place: Place, _: Client) -> str:
    return place.difference()


def judge_copy(place: Place) -> str:
    """How the folder of a pull differs from the cache, or ""."""
    return difference(files_of(place.folder / "copy"), files_of(place.world.caches[place.cache]))


def _judge_pull(place: Place, _: Client) -> str:
    return judge_copy(place) or place.difference()


def _judge_rm(place: Place, _: Client) -> str:
    return f"left over: {', '.join(sorted(place.objects())[:3])}" if place.objects() else ""


def _judge_ls(place: Place, client: Client) -> str:
    listed = [(row["url"], row["state"]) for row in json.loads(client.output or "[]")]
    return "" if listed == [(place.url, "complete")] else f"listed {listed}"


def _judge_verify(place: Place, client: Client) -> str:
    return "" if json.loads(client.output)["ok"] is True else f"said {client.output[:200]}"


def _judge_harvest(place: Place, _: Client) -> str:
    return "the scratch folder stays" if (place.folder / "scratch").exists() else place.difference()


def _judge_train(place: Place, _: Client) -> str:
    got = difference(sae_of(place.folder / "run"), place.world.trained)
    left = [file.name for file in (place.folder / "run").rglob("*.tmp")]
    return got or (f"left over: {', '.join(left)}" if left else "")


def _judge_evaluate(place: Place, _: Client) -> str:
    got = measures_of(place.folder / "results.json")
    return "" if got == place.world.measured else "other results"


def _judge_publish(place: Place, _: Client) -> str:
    """The card has the URL in it; ``saecache.json`` lists what is there."""
    there, expected = place.objects(), place.world.published
    url = {"README.md": expected["README.md"].replace(b"s3://team/sae", place.url.encode())}
    got = difference(there, expected | url | {"saecache.json": there.get("saecache.json", b"")})
    listed = json.loads(there.get("saecache.json", b'{"files": {}}'))["files"]
    for name in sorted(expected.keys() - {"saecache.json"}):
        content = there.get(name, b"")
        if listed.get(name) != {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}:
            return got or f"saecache.json says something else of {name}"
    return got


def harvest_words(place: Place, scratch: str = "scratch") -> list[str]:
    return ["harvest", "harvest-a.yaml", "--out", place.url, "--scratch", str(place.folder / scratch)]


def push_words(place: Place, cache: str | None = None) -> list[str]:
    return ["cache", "push", str(place.world.caches[cache or place.cache]), place.url]


def pull_words(place: Place) -> list[str]:
    return ["cache", "pull", place.url, str(place.folder / "copy")]


def train_words(place: Place) -> list[str]:
    return ["train", "train.yaml", "--cache", place.url, "--out", str(place.folder / "run")]


def rm_words(place: Place) -> list[str]:
    return ["cache", "rm", place.url, "--yes"]


def extend_words(place: Place) -> list[str]:
    words = ["harvest", f"harvest-{EXTENDED}.yaml", "--extend", "cache-a", "--out", place.url]
    return [*words, "--scratch", str(place.folder / "scratch")]


def evaluate_words(place: Place) -> list[str]:
    out = str(place.folder / "results.json")
    return ["evaluate", "run", "--cache", place.url, "--no-model", "--out", out]


def publish_words(place: Place) -> list[str]:
    return ["publish", "run", place.url, "--results", "measured/results.json"]


PUSH = Command("push", push_words, _judge_whole, needs_cache=False)
PULL = Command("pull", pull_words, _judge_pull)
RM = Command("rm", rm_words, _judge_rm)
LS = Command("ls", lambda place: ["cache", "ls", place.team, "--json"], _judge_ls)
VERIFY = Command("verify", lambda place: ["cache", "verify", place.url, "--json"], _judge_verify)
HARVEST = Command("harvest", harvest_words, _judge_harvest, needs_cache=False)
TRAIN = Command("train", train_words, _judge_train)
EXTEND = Command("extend", extend_words, _judge_harvest, needs_cache=False, cache=EXTENDED)
EVALUATE = Command("evaluate", evaluate_words, _judge_evaluate)
PUBLISH = Command("publish", publish_words, _judge_publish, needs_cache=False)
COMMANDS = (PUSH, PULL, RM, LS, VERIFY, HARVEST, TRAIN, EXTEND, EVALUATE, PUBLISH)
KILLED = (PUSH, PULL, RM, HARVEST, TRAIN, EXTEND, EVALUATE, PUBLISH)
