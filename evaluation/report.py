"""What an evaluation ends with: a report in Markdown, and plots."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure as Picture
from matplotlib.ticker import LogLocator

from evaluation.common.figures import Figure, table
from evaluation.common.writing import markdown, write_text
from evaluation.names import resolve
from evaluation.registry import TASKS, perplexity_ratio, spoken
from evaluation.tasks.prompting import as_table

Columns = dict[str, dict[str, Figure]]

VIEWS = (", both sides", ", left only")
"""How figures end that are drawn as a model's lines."""


def write_report(
    output: Path,
    records: Sequence[dict[str, Any]],
    failures: Sequence[dict[str, str]],
    base: str | None = None,
) -> str:
    """Write `report.md` and the plots that there are figures for, and return the report.

    The measured model's records come first. The others' perplexities are also divided by the base's.
    """
    parts = [_head(records)] if records else ["# Evaluation\n\nNothing was measured."]
    for name, task in TASKS.items():
        if columns := columns_of(records, name):
            parts.append(f"## {name}\n\n{task.shows}.\n\n{_tables(name, columns)}")
            if name == "infilling" and base and (ratios := _ratios(records, base)):
                parts.append(
                    f"The same perplexities over those of {short(base)}, span by span:\n\n"
                    + table(ratios, digits=3)
                )
    if records:
        parts.append(f"## Time\n\n{_times(records)}")
    for path in draw(output, {name: columns_of(records, name) for name in TASKS}):
        parts.append(f"![{path.stem}]({path.name})")
    if failures:
        lines = [f"- {f['model']}, {f['task']}: {f['error']}" for f in failures]
        parts.append("\n".join(["## Failed", "", *lines]))
    report = "\n\n".join(parts) + "\n"
    write_text(output / "report.md", report)
    return report


def _tables(task: str, columns: Columns) -> str:
    """The figures of a task; of prompting a table a model, with the methods as rows."""
    if task != "prompting":
        return table(columns)
    return "\n\n".join(f"{model}\n\n{as_table(figures)}" for model, figures in columns.items())


def columns_of(records: Sequence[dict[str, Any]], task: str) -> Columns:
    """The figures of a task, by model."""
    return {
        short(record["model"]): figures_of(record) for record in records if record["task"] == task
    }


def figures_of(record: dict[str, Any]) -> dict[str, Figure]:
    """A record's figures as they were measured."""
    return {name: Figure(**figure) for name, figure in record["figures"].items()}


def short(model: str) -> str:
    """A model's name without the folders above the last two: a path of a machine tells nobody anything."""
    kind, place = resolve(model)
    name = "/".join(Path(place).parts[-2:])
    return name if kind == "magnet" else f"{kind}:{name}"


def _head(records: Sequence[dict[str, Any]]) -> str:
    first = records[0]
    versions = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    return (
        f"# Evaluation of {short(first['model'])}\n\n"
        f"Suite {first['suite']}, seed {first['seed']}, {first['device']}. {versions}.\n"
        "In brackets 95 % bootstrap intervals over the n examples."
    )


def _ratios(records: Sequence[dict[str, Any]], base: str) -> Columns:
    """Both sides and left only, of each model, over left only and prompted of the base."""
    found = {r["model"]: r["details"] for r in records if r["task"] == "infilling"}
    if base not in found or len(found) < 2:
        return {}
    return {
        short(model): {
            f"{text}, {spoken(view)} / {spoken(than)} of the base": perplexity_ratio(
                losses, view, found[base][text], than
            )
            for text, losses in details.items()
            for than in ("left_only", "prompted")
            for view in ("both_sides", "left_only")
        }
        for model, details in found.items()
    }


def _times(records: Sequence[dict[str, Any]]) -> str:
    models = list(dict.fromkeys(short(record["model"]) for record in records))
    seconds = {(short(r["model"]), r["task"]): r["seconds"] for r in records}
    rows = []
    measured = {record["task"] for record in records}
    for task in [task for task in TASKS if task in measured]:
        cells = [seconds.get((model, task)) for model in models]
        rows.append([task, *("-" if cell is None else f"{cell:.0f}" for cell in cells)])
    totals = [sum(s for (model, _), s in seconds.items() if model == m) for m in models]
    rows.append(["all", *(f"{total:.0f}" for total in totals)])
    return markdown(["seconds", *models], rows)


def draw(output: Path, tables: dict[str, Columns]) -> list[Path]:
    """Draw STS bars, perplexity against windows, span lengths, positions, where there are figures."""
    pictures = []
    if sts := tables.get("sts"):
        pictures.append(draw_bars(output / "sts.png", sts, "Spearman x 100"))
    windows = {
        model: {name: found for name, found in figures.items() if name.endswith(VIEWS)}
        for model, figures in tables.get("windows", {}).items()
    }
    if windows:
        labels = ("tokens around the span", "perplexity")
        panel = {"a missing span in articles, WikiText-103": _points(windows, ", ")}
        pictures.append(draw_lines(output / "windows.png", panel, labels, groups=True))
    spans, infilling = tables.get("span-length", {}), tables.get("infilling", {})
    panels = {
        "span of n tokens, WikiText-103": _points(spans, " tokens, "),
        "missing sentence, ROC Stories": _points(infilling, "ROC Stories, position "),
    }
    if any(panels.values()):
        labels = ("tokens, or number of the sentence", "perplexity")
        pictures.append(draw_lines(output / "infilling.png", panels, labels, groups=True))
    return pictures


def _points(columns: Columns, marker: str) -> dict[str, list[tuple[float, Figure]]]:
    """Lines by model and view, of the figures whose names hold a marker and a number beside it."""
    lines: dict[str, list[tuple[float, Figure]]] = {}
    for model, figures in columns.items():
        for name, figure in figures.items():
            if marker in name:
                number = name.replace(marker, " ").split()[0].rstrip(",")
                view = name.rpartition(", ")[2]
                lines.setdefault(f"{model}, {view}", []).append((float(number), figure))
    return lines


def draw_bars(path: Path, columns: Columns, label: str) -> Path:
    """Draw figures side by side, a colour a model, with their intervals."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    width, size = 0.8 / len(columns), max(5, 1 + 0.5 * len(names) * len(columns))
    with _picture(path, 1, size) as (axis,):
        for i, (model, figures) in enumerate(columns.items()):
            shift = (i - (len(columns) - 1) / 2) * width
            places = [n + shift for n, name in enumerate(names) if name in figures]
            found = [figures[name] for name in names if name in figures]
            axis.bar(
                places, [f.value for f in found], width, yerr=_errors(found), capsize=2, label=model
            )
        axis.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set_ylabel(label)
        axis.grid(axis="y", alpha=0.3)
    return path


def draw_lines(
    path: Path,
    panels: dict[str, dict[str, list[tuple[float, Figure]]]],
    labels: tuple[str, str],
    groups: bool = False,
) -> Path:
    """Draw lines of points (x, figure) with their intervals, a panel a title.

    With `groups`, each x is a group, the lines beside each other, on a logarithmic scale: for perplexities
    of few texts, whose intervals are wide and overlap.
    """
    panels = {title: lines for title, lines in panels.items() if lines}
    with _picture(path, len(panels), 5 * len(panels)) as axes:
        for axis, (title, lines) in zip(axes, panels.items(), strict=True):
            values = sorted({x for points in lines.values() for x, _ in points})
            models = list(dict.fromkeys(map(_model_of, lines)))  # a colour each
            for n, (name, points) in enumerate(lines.items()):
                where, found = zip(*sorted(points), strict=True)
                if groups:
                    shift = 0.1 * (n - (len(lines) - 1) / 2)
                    where = tuple(values.index(x) + shift for x in where)
                axis.errorbar(
                    where, [f.value for f in found], yerr=_errors(found), marker="o", markersize=4,
                    capsize=2, label=name, color=f"C{models.index(_model_of(name))}",
                    linestyle="--" if name.endswith("left only") else "-",
                )  # fmt: skip
            axis.set(title=title, xlabel=labels[0], ylabel=labels[1])
            axis.set_xticks(range(len(values)) if groups else values, [f"{x:g}" for x in values])
            if groups:
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("")
            axis.grid(alpha=0.3)
    return path


@contextmanager
def _picture(path: Path, panels: int, width: float) -> Iterator[Sequence[Any]]:
    """Axes side by side, which are saved with a legend each."""
    figure = Picture(figsize=(width, 4), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    yield axes
    for axis in axes:
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def _model_of(line: str) -> str:
    return next((line.removesuffix(view) for view in VIEWS if line.endswith(view)), line)


def _errors(found: Sequence[Figure]) -> list[list[float]]:
    return [[f.value - f.low for f in found], [f.high - f.value for f in found]]
