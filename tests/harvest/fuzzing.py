"""Damages files of a model's folder, one at a time, and loads it; see ``tests/store/fuzzing.py``.

``python fuzzing.py MODEL FOLDER SEED ROUNDS``
"""

import importlib.util
import json
import random
import resource
import shutil
import signal
import sys
from pathlib import Path

from saecache.harvest.model.language_model import LanguageModel

_spec = importlib.util.spec_from_file_location(
    "store_fuzzing", Path(__file__).parent.parent / "store" / "fuzzing.py"
)
assert _spec and _spec.loader
store = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(store)


def load(folder: Path) -> None:
    model = LanguageModel.load(str(folder), dtype="float32", device="cpu")
    model.logits([[1, 2, 3]])


def main(model: Path, folder: Path, seed: int, rounds: int) -> int:
    def too_long(*_: object) -> None:
        raise TimeoutError("it waits for ever")

    signal.signal(signal.SIGALRM, too_long)
    copy = folder / "copy"
    load(model)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + store.MORE_ADDRESSES, resource.RLIM_INFINITY))
    fuzz = store.Fuzz(folder, seed)
    for number in range(rounds):
        draw = random.Random(f"{seed} model {number}")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(model, copy)
        path = draw.choice(sorted(file for file in copy.iterdir() if file.is_file()))
        kind = draw.choice(["bytes", "value", "value", "place"])
        if kind == "place":
            if not store.put_in_place(draw, path, fuzz.outside):
                continue
        elif kind == "value" and path.suffix == ".json":
            value = json.loads(path.read_bytes())
            store.damage_value(draw, value)
            path.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
        else:  # of weights the header, mostly
            content = path.read_bytes()
            head = min(len(content), 2000) if path.suffix == ".safetensors" else len(content)
            path.write_bytes(store.damage_bytes(draw, content[:head]) + content[head:])
        fuzz.case(f"model {number} {kind} {path.name}", "copy", lambda: load(copy))
    for failure in fuzz.failures[:20]:
        print(failure, end="\n\n")
    print(f"seed {seed}: {fuzz.cases} cases, {fuzz.right} read, {len(fuzz.failures)} failures")
    return min(1, len(fuzz.failures))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
