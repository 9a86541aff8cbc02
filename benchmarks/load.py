"""`magnet serve` under load: many clients, mixed jobs, every answer compared with the direct call.

    python -m benchmarks.load --model checkpoints/magnet-smollm2-135m --clients 16 --seconds 120 --output load.json

Prints a table: answers by kind and status, answers that differ, latency, and the server's memory after a tenth of the time
and at the end. Then, in the same run, how many texts are encoded per second by the server and by sentence-transformers in
its place, over a loop of direct calls: median, lowest and highest of three rounds, in turns. An adapter is merged first, so
that all ways compute the same.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from evaluation.common.writing import markdown

from .texts import read_texts

WORDS = 8
"""Tokens that each completion and infilling writes."""

ROUNDS = 3
"""Of the ways that are compared."""


def jobs(texts: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, path and body of requests: three of four are embeddings."""
    made: list[tuple[str, str, dict[str, Any]]] = []
    for i, text in enumerate(texts):
        half = len(text) // 2
        if i % 8 == 3:
            body = {"prompt": text, "max_tokens": WORDS, "temperature": 0}
            made.append(("completion", "/v1/completions", body))
        elif i % 8 == 7:
            body = {
                "input_prefix": text[:half],
                "input_suffix": text[half:],
                "span_length": WORDS if i % 16 == 7 else None,
                "n_predict": WORDS,
            }
            made.append(("infill", "/infill", body))
        else:
            made.append(("embedding", "/v1/embeddings", {"input": text}))
    return made


def expected(model: Any, requests: list[tuple[str, str, dict[str, Any]]]) -> list[Any]:
    """What the direct call gives for each request."""
    found: list[Any] = []
    for kind, _, body in requests:
        if kind == "embedding":
            found.append(model.encode(body["input"], normalize_embeddings=True))
        elif kind == "infill":
            parts = body["input_prefix"], body["input_suffix"], body["span_length"]
            found.append(model.infill(*parts, max_new_tokens=WORDS, do_sample=False))
        else:
            (ids,) = model.text_tokenizer.ids([body["prompt"]], add_special_tokens=True)
            written = model.generate(torch.tensor([ids]), max_new_tokens=WORDS, do_sample=False)
            found.append(model.text_tokenizer.continued.decode(written[0, len(ids) :]))
    return found


def equal(kind: str, answer: dict[str, Any], wanted: Any) -> bool:
    """Whether an answer is the direct call's."""
    if kind == "embedding":
        return np.allclose(answer["data"][0]["embedding"], wanted, atol=1e-4)
    if kind == "infill":
        return answer["content"] == wanted
    return answer["choices"][0]["text"] == wanted


class Server:
    """A `magnet serve` process."""

    def __init__(self, model: str, *options: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "modeling_magnet.cli", "serve", model, "--port", "0", *options],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "running on" in line:
                self.address = line.split("running on ")[1].split()[0]
                break
        else:
            raise RuntimeError("the server did not start")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    @property
    def mib(self) -> float:
        """Its memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def soak(server: Server, requests, wanted, clients: int, seconds: float) -> dict[str, Any]:
    """Clients that ask one request after another, until the time is over."""
    end = time.monotonic() + seconds
    statuses: Counter[str] = Counter()
    times: dict[str, list[float]] = {}
    different: list[int] = []
    memory: list[float] = []

    def client(seed: int) -> None:
        drawn = random.Random(seed)
        with httpx.Client(base_url=server.address, timeout=600) as http:
            while time.monotonic() < end:
                i = drawn.randrange(len(requests))
                kind, path, body = requests[i]
                began = time.monotonic()
                answer = http.post(path, json=body)
                statuses[f"{kind} {answer.status_code}"] += 1
                if answer.status_code == 200:
                    times.setdefault(kind, []).append(time.monotonic() - began)
                    if not equal(kind, answer.json(), wanted[i]):
                        different.append(i)
                elif answer.status_code == 429:
                    time.sleep(float(answer.headers["retry-after"]))

    with ThreadPoolExecutor(clients) as pool:
        asked = pool.map(client, range(clients))
        while time.monotonic() < end:
            time.sleep(seconds / 10)
            memory.append(server.mib)
        list(asked)  # raises what a client has raised
    return {
        "statuses": dict(sorted(statuses.items())),
        "different": len(different),
        "seconds": {
            kind: [statistics.median(found), statistics.quantiles(found, n=20)[-1]]
            for kind, found in times.items()
        },
        "mib": memory,
    }


def throughput(address: str, texts: list[str], clients: int) -> float:
    """Texts that a server encodes per second, one per request."""
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=address, timeout=600, limits=limits) as http:

        def ask(text: str) -> None:
            http.post("/v1/embeddings", json={"input": text}).raise_for_status()

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, texts[:clients]))
            began = time.monotonic()
            list(pool.map(ask, texts))
    return len(texts) / (time.monotonic() - began)


def over_direct_calls(
    model: Any, addresses: dict[str, str], texts: list[str], clients: int
) -> dict[str, list[float]]:
    """Texts that servers encode per second over those of a loop of direct calls, in turns."""
    ratios: dict[str, list[float]] = {name: [] for name in addresses}
    for _ in range(ROUNDS):
        began = time.monotonic()
        for text in texts:
            model.encode(text)
        direct = len(texts) / (time.monotonic() - began)
        for name, address in addresses.items():
            ratios[name].append(throughput(address, texts, clients) / direct)
    return ratios


def sentence_transformers_server(folder: str) -> str:
    """The address of the same server, its vectors made by sentence-transformers from the same folder."""
    import uvicorn
    from sentence_transformers import SentenceTransformer

    from modeling_magnet import load_magnet
    from modeling_magnet.serve.app import Server as Serving
    from modeling_magnet.serve.app import create_app

    encoder = SentenceTransformer(folder, trust_remote_code=True)

    def encode(texts, prompt_name=None, prompt=None, **arguments):
        return encoder.encode(texts, **arguments)

    model: Any = load_magnet(folder)
    model.encode = encode
    app = create_app(Serving(model, "sentence-transformers"))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


def main() -> None:
    """Measure, print a table, write a file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="checkpoints/magnet-smollm2-135m")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path("load.json"))
    args = parser.parse_args()

    from modeling_magnet import load_magnet
    from modeling_magnet.cli.exporting import merge_adapter

    model = load_magnet(args.model)
    merge_adapter(model)
    texts = read_texts([]).some("mixed", args.texts)
    requests = jobs(texts)
    wanted = expected(model, requests)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        server = Server(folder)
        try:
            found = soak(server, requests, wanted, args.clients, args.seconds)
            addresses = {
                "magnet serve": server.address,
                "sentence-transformers": sentence_transformers_server(folder),
            }
            found["over direct calls"] = over_direct_calls(model, addresses, texts, args.clients)
        finally:
            server.stop()
    args.output.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


def table(found: dict[str, Any]) -> str:
    """As Markdown."""
    rows = [[f"answers, {name}", count] for name, count in found["statuses"].items()]
    rows.append(["answers that differ from the direct call", found["different"]])
    for kind, (median, most) in found["seconds"].items():
        rows.append([f"{kind}, median and 95 %", f"{median:.2f} s, {most:.2f} s"])
    growth = f"{found['mib'][-1] / found['mib'][0]:.2f}"
    rows.append(["memory at the end over after a tenth of the time", growth])
    for name, ratios in found["over direct calls"].items():
        shown = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([f"texts encoded per second by {name}, over direct calls", shown])
    return markdown(["", ""], rows)


if __name__ == "__main__":
    main()
