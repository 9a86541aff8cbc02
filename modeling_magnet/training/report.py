"""Writes a run's report: a short table, and its curves as a picture."""

import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from modeling_magnet.atomic import atomic_write

from .arguments import OBJECTIVES, Arguments
from .trainer import MagnetTrainer

PANELS = {
    "losses": (*OBJECTIVES, "matryoshka"),
    "perplexity": ("eval_span_perplexity", "eval_left_only_perplexity", "eval_causal_perplexity"),
    "accuracy": (
        "mntp_accuracy",
        "eval_mntp_accuracy",
        "eval_pair_accuracy",
        "eval_class_accuracy",
    ),
    "correlation": ("eval_pair_spearman", "eval_teacher_spearman"),
    "learning rate": ("learning_rate",),
}
"""Which curves are drawn together."""


def write_report(log_history: list[dict], folder: str | Path, details: dict) -> str:
    """Write `results.json`, `results.md` and, where matplotlib is installed, `curves.png`.

    Args:
        log_history: of the Trainer.
        folder: where to write them.
        details: on what and with what the figures were measured, by name.

    Returns:
        The table of `results.md`: for each figure the first, the last and the best value.
    """
    folder = Path(folder)
    curves = curves_of(log_history)
    rows = [
        (name, values[0], values[-1], _best_of(name)(v for _, v in values))
        for name, values in curves.items()
        if name != "learning_rate"
    ]
    lines = [
        "| figure | first (step) | last (step) | best |",
        "|---|---|---|---|",
        *(
            f"| {name} | {first[1]:.4g} ({first[0]}) | {last[1]:.4g} ({last[0]}) | {best:.4g} |"
            for name, first, last, best in rows
        ),
    ]
    table = "\n".join(lines)
    told = "\n".join(f"- {name}: {value}" for name, value in details.items())
    with atomic_write(folder / "results.md") as temporary:
        temporary.write_text(f"{table}\n\n{told}\n", encoding="utf-8")
    content = {"details": details, "curves": curves}
    with atomic_write(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if curves:
        draw_curves(curves, folder / "curves.png")
    return table


def curves_of(log_history: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """Each figure's (step, value) in the order of steps."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for name in ("loss", *(name for names in PANELS.values() for name in names)):
        values = [(line["step"], float(line[name])) for line in log_history if name in line]
        if values:
            curves[name] = values
    return curves


def _best_of(name: str) -> Callable:
    return max if name.endswith(("accuracy", "spearman")) else min


def draw_curves(curves: dict[str, list[tuple[int, float]]], path: str | Path) -> None:
    """Draw the curves against steps, with one panel per kind.

    Args:
        curves: from `curves_of`.
        path: of the picture.
    """
    try:
        import matplotlib
    except ImportError:
        print("no curves.png: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {kind: [n for n in names if n in curves] for kind, names in PANELS.items()}
    panels = {kind: names for kind, names in panels.items() if names}
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.2), squeeze=False, layout="constrained"
    )
    for axis, (kind, names) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            steps, values = zip(*curves[name], strict=True)
            held_out = name.startswith("eval_")
            axis.plot(
                steps,
                values,
                label=name.removeprefix("eval_").replace("_", " ")
                + (", held out" if held_out else ""),
                marker="o" if held_out or len(values) < 12 else None,
                markersize=3,
            )
        axis.set(title=kind, xlabel="step")
        if kind != "perplexity":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def details_of(arguments: Arguments, trainer: MagnetTrainer) -> dict:
    """On what and with what a run's figures were measured."""
    model, data, args = arguments
    metrics = next((m for m in trainer.state.log_history[::-1] if "train_runtime" in m), {})
    device = torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type
    return {
        "base model": Path(model.model).name,
        "text": ", ".join(Path(name).name for name in data.text),
        "pairs": ", ".join(Path(name).name for name in data.pairs),
        "steps": trainer.state.global_step,
        "a step": f"{trainer.data_collator.items_per_step} blocks of {data.block_length} tokens, "
        f"{data.pairs_per_block} pairs with each",
        "seed": args.seed,
        "evaluated on": f"{data.validation_blocks} blocks, {data.validation_pair_count} pairs"
        if trainer.eval_dataset is not None
        else "nothing",
        "devices": f"{args.world_size} x {device} ({platform.machine()})",
        "seconds": round(metrics.get("train_runtime", 0)),
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
