"""From a base model to one that encodes, infills and generates, in minutes on a CPU.

    make quickstart
    python -m examples.quickstart --steps 100 --output outputs/longer
    python -m examples.quickstart --model HuggingFaceTB/SmolLM2-360M --text my.txt --output outputs/mine

Measures the base model unchanged, and with the start token after which it predicts text best. Adapts it with all three
objectives, writes a folder, loads that in a new process by `AutoModel.from_pretrained(folder, trust_remote_code=True)` and
measures it. Prints the figures beside those of the released checkpoint, which was adapted for longer. A second run with the
same options keeps what the first has finished.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

from transformers.utils import logging

from evaluation.common.writing import write_json
from modeling_magnet import load_magnet
from modeling_magnet.training.base import load_base, prepare_base
from modeling_magnet.training.data import first_texts
from modeling_magnet.training.train import parse, train

from .folder import INFILLS, SENTENCES, measure, show

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "training" / "configs" / "quickstart.yaml"
RELEASED = ROOT / "checkpoints" / "magnet-smollm2-135m"

TITLES = {
    "as_it_comes": "unchanged",
    "before": "start token",
    "after": "adapted",
    "released": "released",
}

ROWS = {
    "both_sides": "infilling perplexity, both sides",
    "left_only": "infilling perplexity, left side only",
    "causal": "causal perplexity",
    "sts": "sentence similarity, Spearman x 100",
    "sts_no_prompt": "sentence similarity without a prompt",
}


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, help="training steps (default: the config's 30)")
    parser.add_argument("--model", help="Hub id or folder of a base model (default: SmolLM2-135M)")
    parser.add_argument("--text", help="your text: .txt, .jsonl or .parquet")
    parser.add_argument("--pairs", help="your sentence pairs: .jsonl or .parquet")
    parser.add_argument("--output", default="outputs/quickstart", help="where results go")
    parser.add_argument("--sts", help="also measure on a TSV: score, sentence1, sentence2")
    return parser.parse_args()


def training_arguments(chosen: argparse.Namespace):
    """The config's arguments with the options on top."""
    command_line = [str(CONFIG), "--output_dir", chosen.output]
    for flag, value in (
        ("--model", chosen.model),
        ("--text", chosen.text),
        ("--pairs", chosen.pairs),
    ):
        command_line += [flag, value] if value else []
    if chosen.steps is not None:
        if chosen.steps < 2:
            raise SystemExit(f"--steps is {chosen.steps}: give 2 or more")
        command_line += ["--max_steps", str(chosen.steps)]
    return parse(command_line)


def claim(output: Path, chosen: argparse.Namespace) -> None:
    """Refuse a folder that holds something else: a run with other options, or a model of another origin."""
    mine = {k: v for k, v in vars(chosen).items() if k not in ("output", "sts")}
    path = output / "options.json"
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        if theirs != mine:
            raise SystemExit(
                f"{output} holds a run with other options ({theirs}): give another --output"
            )
    elif (output / "model").exists():
        raise SystemExit(
            f"{output / 'model'} exists, and the quickstart did not write it: "
            "move it away, or give another --output"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, mine)


def stage(name: str, seconds: dict[str, float], began: float) -> float:
    """Note and say how long a part took."""
    seconds[name] = time.monotonic() - began
    print(f"-- {name}: {seconds[name]:.0f} s\n", flush=True)
    return time.monotonic()


def table(columns: dict[str, dict[str, float]]) -> str:
    """The figures side by side."""
    lines = [f"{'':40}" + "".join(f"{name:>15}" for name in columns)]
    for key, label in ROWS.items():
        lines.append(f"{label:40}" + "".join(f"{c[key]:15.2f}" for c in columns.values()))
    return "\n".join(lines)


def print_examples(examples: dict[str, dict]) -> None:
    """One example of each job, of each model."""
    print("Encoding: cosine similarity to the first sentence\n  " + SENTENCES[0])
    print("  " + "".join(f"{name:>12}" for name in examples))
    for i, sentence in enumerate(SENTENCES[1:], 1):
        shown = "".join(f"{found['similarity'][0][i]:12.2f}" for found in examples.values())
        print(f"  {shown}   {sentence}")
    print("\nInfilling: the text between the brackets was written")
    for i, (prefix, suffix) in enumerate(INFILLS):
        for name, found in examples.items():
            print(f"  {name + ':':12} {prefix}[{found['infill'][i]}]{suffix}")
    print("\nGenerating")
    for name, found in examples.items():
        print(f"  {name + ':':12} {found['generate']}")


def main() -> None:
    """The command."""
    chosen = options()
    output = Path(chosen.output)
    arguments = training_arguments(chosen)
    claim(output, chosen)
    warnings.filterwarnings("ignore", module=r"torch\.utils\.data|transformers|peft")
    logging.set_verbosity_error()
    seconds: dict[str, float] = {}
    began = time.monotonic()

    files = {name: output / f"{name}.json" for name in ("as_it_comes", "before", "after")}
    folder = output / "model"
    adapted = (folder / "config.json").exists()
    if not (files["before"].exists() and adapted):
        print(f"1. Load and measure the base model {arguments[0].model}", flush=True)
        if not files["as_it_comes"].exists():
            base = load_base(arguments[0].model).eval()
            write_json(files["as_it_comes"], {"figures": measure(base, chosen.sts)})
        prepare_base(arguments[0], first_texts(arguments[1], 160), output / "base")
        if not files["before"].exists():
            base = load_magnet(output / "base").eval()
            write_json(
                files["before"], {"figures": measure(base, chosen.sts), "examples": show(base)}
            )
        began = stage("base model measured", seconds, began)
    if not adapted:
        print(f"2. Adapt it in {arguments[2].max_steps} steps: mntp, msg and sscl are the losses")
        train(arguments)
        began = stage("adapted and saved", seconds, began)
    if not files["after"].exists():
        print(f"3. Load {folder} in a new process by AutoModel, and measure it", flush=True)
        command: list = [
            sys.executable,
            "-m",
            "examples.folder",
            folder,
            "--results",
            files["after"],
        ]
        command += ["--sts", chosen.sts] if chosen.sts else []
        subprocess.run(command, check=True, env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"})
        began = stage("reloaded and measured", seconds, began)
    if chosen.model is None:
        files["released"] = output / "released.json"
        if not files["released"].exists():
            print(f"4. Measure the released checkpoint, {RELEASED.relative_to(ROOT)}", flush=True)
            model = load_magnet(RELEASED).eval()
            content = {"figures": measure(model, chosen.sts), "examples": show(model)}
            write_json(files["released"], content)
            began = stage("released checkpoint measured", seconds, began)

    results = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items()}
    print(table({TITLES[name]: result["figures"] for name, result in results.items()}), end="\n\n")
    print_examples({TITLES[k]: r["examples"] for k, r in results.items() if "examples" in r})
    print(f"\nThe adapted model: {folder}   (LoRA adapter alone: {output / 'adapter'})")
    if seconds:
        print(f"Took {sum(seconds.values()):.0f} s.")


if __name__ == "__main__":
    main()
