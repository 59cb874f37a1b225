"""An OpenAI-compatible server around a small local model, to try ``saecache interpret`` without another one.

``python serve_local_model.py MODEL PORT``, where MODEL is a folder or a .gguf file; it answers one call at a
time, greedily. For trials by hand only: a real judge needs a real server.
"""

import sys
from http.server import HTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluate.judge.judge_server import Handler, Judge, Request


def load(place: Path) -> tuple[Any, Any]:
    """The tokenizer and the model."""
    source = {"gguf_file": place.name} if place.suffix == ".gguf" else {}
    folder = place.parent if source else place
    tokenizer = AutoTokenizer.from_pretrained(folder, **source)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **source)
    return tokenizer, model.eval()


def main(place: Path, port: int) -> None:
    tokenizer, model = load(place)

    def reply(handler: Handler, request: Request) -> bool:
        ids = tokenizer.apply_chat_template(
            request.body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=request.body["max_tokens"], do_sample=False)
        new = out[0, ids["input_ids"].shape[1] :]
        cut = len(new) >= request.body["max_tokens"]
        text = tokenizer.decode(new, skip_special_tokens=True)
        print(f"{ids['input_ids'].shape[1]} -> {text!r}", flush=True)
        handler.say(text, "length" if cut else "stop")
        return True

    judge = Judge(models=[place.name], always=reply)
    handler = type("LocalModel", (Handler,), {"judge": judge})
    with HTTPServer(("127.0.0.1", port), handler) as server:
        print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
