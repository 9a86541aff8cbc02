"""What each objective gives: run the configs of Table 7 and Figure 7, measure them, collect the rows.

    python -m evaluation.studies.ablations --configs training/configs/smollm2-135m.yaml training/configs/smollm2-135m-cpu.yaml \\
        --data DIR --output outputs/ablations

Trains `training/configs/ablations/NAME.yaml` over the first config and under the others, each in a
folder of its own that a later call goes on with; then measures each by `evaluation.run`, whose flags
may follow. Writes `ablations.md`, and `masked-tokens.png`, the accuracy on held-out masked tokens over
training (Figure 7), where the configs evaluate.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation import run
from evaluation.common.figures import Figure, table
from evaluation.common.writing import write_text
from evaluation.report import draw_lines, figures_of

CONFIGS = Path(__file__).parents[2] / "training" / "configs" / "ablations"
TABLE_7 = ("mntp", "sscl", "mntp-msg", "sscl-msg", "all", "mtp")


def train(name: str, configs: Sequence[str], folder: Path) -> None:
    """Train an ablation, or finish it, unless its model is there.

    Raises:
        RuntimeError: training failed; what it wrote stands above.
    """
    if (folder / "model" / "config.json").exists():
        print(f"{name} is trained already", flush=True)
        return
    files = [configs[0], str(CONFIGS / f"{name}.yaml"), *configs[1:]]
    command = ["-m", "modeling_magnet.training.train", *files, "--output_dir", str(folder)]
    print(f"{name}: {' '.join(command)}", flush=True)
    if subprocess.run([sys.executable, *command], check=False).returncode:
        raise RuntimeError(f"{name} failed in training, see above; run this again to continue")


def accuracy_curves(folders: dict[str, Path]) -> dict[str, list[tuple[float, Figure]]]:
    """The accuracy on held-out masked tokens over training, in percent, of the runs that have it."""
    curves = {}
    for name, folder in folders.items():
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        points = content["curves"].get("eval_mntp_accuracy", [])
        figures = [(step, Figure(100 * v, 100 * v, 100 * v, 1)) for step, v in points]
        if figures:
            curves[name] = figures
    return curves


def main(command_line: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    names = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    order = "of training: the ablation's comes after the first"
    add("--configs", nargs="+", required=True, help=order)
    add("--ablations", nargs="+", choices=names, default=list(TABLE_7), help="what to run")
    add("--output", type=Path, required=True, help="folder of the runs and the results")
    options, rest = parser.parse_known_args(command_line)
    folders = {name: options.output / name for name in options.ablations}
    if "--tasks" not in rest:
        rest += ["--tasks", "words", "sts", "infilling", "causal"]
    common = ["--output", str(options.output / "measured"), *rest]
    base = f"bidirectional:{folders[options.ablations[0]] / 'base'}"
    try:
        run.check_data(run.parse(["--model", base, *common]))  # before hours of training
        for name, folder in folders.items():
            train(name, options.configs, folder)
        models = [str(folder / "model") for folder in folders.values()]
        measured = ["--model", models[0], "--baselines", base, *models[1:]]
        plan = run.Plan(run.parse([*measured, *common]))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    records, failures = run.run(plan)
    columns: dict[str, dict[str, Figure]] = {}
    for record in records:
        place = Path(record["model"].removeprefix("bidirectional:"))
        name = "base" if place.name == "base" else place.parent.name
        columns.setdefault(name, {}).update(figures_of(record))
    text = table(columns)
    write_text(options.output / "ablations.md", f"{text}\n")
    if curves := accuracy_curves(folders):
        panels, labels = {"held-out masked tokens": curves}, ("training step", "accuracy, %")
        draw_lines(options.output / "masked-tokens.png", panels, labels)
    print(text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
