"""Figures against training steps, of the checkpoints of one or more runs (Figure 6).

    python -m evaluation.studies.steps --runs outputs/magnet outputs/llm2vec-mntp --tasks repetition \\
        --data DIR --output outputs/steps

All other flags are those of `evaluation.run`, which measures each checkpoint, and resumes. Writes
`steps.md` and `steps.png` besides. Checkpoints must be kept in training (`save_total_limit`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation import run
from evaluation.common.figures import Figure, table
from evaluation.common.writing import write_text
from evaluation.report import draw_lines, figures_of
from modeling_magnet.training.run_folders import write_adapter

Curves = dict[str, dict[str, list[tuple[float, Figure]]]]


def models_of(runs: Sequence[Path], adapters: Path, steps: Sequence[int] | None) -> dict[str, dict]:
    """The models to measure: of each run its base, as step 0, and its checkpoints.

    Args:
        runs: folders that `modeling_magnet.training.train` wrote with LoRA.
        adapters: folder to write each checkpoint's adapter to, without the projection head.
        steps: of the checkpoints; None: all.

    Returns:
        The name of each model, to its run and its step.

    Raises:
        FileNotFoundError: a run has no base, or none of these checkpoints.
        ValueError: two runs have the same name.
    """
    names = [folder.resolve().name for folder in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two runs are named {min(twice)}: rename one of the folders")
    found: dict[str, dict] = {}
    for folder in runs:
        base, name = folder / "base", folder.resolve().name
        if not base.is_dir():
            raise FileNotFoundError(
                f"{folder} has no base/: give folders of modeling_magnet.training.train"
            )
        checkpoints = {int(p.name.split("-")[1]): p for p in folder.glob("checkpoint-[0-9]*")}
        chosen = sorted(checkpoints.keys() & set(steps if steps is not None else checkpoints))
        if not chosen or (steps is not None and len(chosen) < len(set(steps) - {0})):
            raise FileNotFoundError(f"{folder} has the checkpoints {sorted(checkpoints)}")
        found[f"bidirectional:{base}"] = {"run": name, "step": 0}
        for step in chosen:
            adapter = adapters / f"{name}-{step}"
            newest = checkpoints[step].stat().st_mtime
            if not adapter.exists() or adapter.stat().st_mtime < newest:
                write_adapter(checkpoints[step], base.resolve(), adapter)
            found[f"magnet:{adapter}"] = {"run": name, "step": step}
    return found


def curves_of(records: Sequence[dict[str, Any]], models: dict[str, dict]) -> Curves:
    """Each figure's points (step, figure), by run."""
    curves: Curves = {}
    for record in records:
        model = models[record["model"]]
        for name, figure in figures_of(record).items():
            lines = curves.setdefault(f"{record['task']}: {name}", {})
            lines.setdefault(model["run"], []).append((model["step"], figure))
    return curves


def write_curves(output: Path, curves: Curves) -> str:
    """Write `steps.md` and `steps.png`, and return the table."""
    columns: dict[str, dict[str, Figure]] = {}
    for name, lines in curves.items():
        for run_name, points in lines.items():
            for step, figure in sorted(points):
                columns.setdefault(f"{run_name}, {step:g}", {})[name] = figure
    text = table(columns)
    write_text(output / "steps.md", f"{text}\n")
    panels = {
        name: lines
        for name, lines in curves.items()
        if "of the true text" not in name and max(map(len, lines.values())) > 1
    }
    if panels:
        draw_lines(output / "steps.png", panels, ("training step", ""))
    return text


def main(command_line: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--runs", nargs="+", type=Path, required=True, help="folders of training")
    parser.add_argument("--steps", nargs="+", type=int, help="of the checkpoints (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    options, rest = parser.parse_known_args(command_line)
    try:
        models = models_of(options.runs, options.output / "adapters", options.steps)
        first, *others = models
        measured = ["--model", first, "--baselines", *others, "--output", str(options.output)]
        plan = run.Plan(run.parse([*measured, *rest]))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    records, failures = run.run(plan)
    print(write_curves(options.output, curves_of(records, models)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
