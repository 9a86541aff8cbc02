"""The pictures of the method, drawn from the predicate that the model's mask is made of.

    python -m docs.figures

Writes `masks.svg` (the four masks of the paper's figure 2) and `cache.svg` (the same one-span mask in
the order in which infilling fills the cache) into `docs/images/`. Each cell of a picture carries its
place as an id, `PANEL.QUERY.KEY`, so that what is drawn can be checked.
"""

from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from modeling_magnet.masking import CONTEXT, hybrid_mask_function

matplotlib.use("Agg")
from matplotlib import pyplot

IMAGES = Path(__file__).parent / "images"
WORDS = ["The", "cat", "sat", "on", "the", "mat", "all", "day"]
MASKS = {
    "causal": [1] * 8,
    "bidirectional": [0] * 8,
    "one-span": [0, 0, 1, 1, 1, 0, 0, 0],
    "two-spans": [0, 1, 1, 0, 0, 2, 2, 0],
}
"""The span map of each picture of figure 2."""

TITLES = {
    "causal": "(a) all one span: causal",
    "bidirectional": "(b) all context: bidirectional",
    "one-span": "(c) one missing span",
    "two-spans": "(d) two missing spans",
    "text-order": "in the order of the text",
    "cache-order": "in the order of the cache: suffix, prefix, span",
}
CONTEXT_COLOUR, HIDDEN_COLOUR = "#4c78a8", "#eceff1"
SPAN_COLOURS = {1: "#54a24b", 2: "#e4932b"}


def allowed(span_ids: list[int]) -> torch.Tensor:
    """Which query sees which key under a span map, as the model is told: (queries, keys), bool."""
    columns = torch.arange(len(span_ids))
    predicate = hybrid_mask_function(torch.tensor([span_ids]))
    return predicate(0, 0, columns[:, None], columns[None, :])


def cache_order(span_ids: list[int]) -> list[int]:
    """The positions of a text with one missing span in cache order: suffix, prefix, span."""
    span = [i for i, kind in enumerate(span_ids) if kind != CONTEXT]
    prefix = list(range(span[0]))
    suffix = list(range(span[-1] + 1, len(span_ids)))
    return [*suffix, *prefix, *span]


def colour(kind: int) -> str:
    """Of a token: context, or the span of that number."""
    return CONTEXT_COLOUR if kind == CONTEXT else SPAN_COLOURS[kind]


def draw_mask(axes: Axes, panel: str, span_ids: list[int], positions: list[int]) -> None:
    """Draw a mask: rows are queries, columns keys; a key that is seen has its token's colour.

    Args:
        axes: to draw on.
        panel: a key of `TITLES`.
        span_ids: the span map, in the order of the columns.
        positions: of each column's token in the text.
    """
    length = len(span_ids)
    seen = allowed(span_ids)
    for q in range(length):
        for k in range(length):
            fill = colour(span_ids[k]) if seen[q, k] else HIDDEN_COLOUR
            cell = Rectangle((k, q), 1, 1, facecolor=fill, edgecolor="white", linewidth=1.2)
            cell.set_gid(f"{panel}.{q}.{k}")
            axes.add_patch(cell)
    axes.set(xlim=(0, length), ylim=(length, 0), aspect="equal")
    axes.set_title(TITLES[panel], fontsize=10)
    centres = [i + 0.5 for i in range(length)]
    words = [WORDS[position] for position in positions]
    axes.set_xticks(centres, words, rotation=60, fontsize=8)
    axes.set_yticks(centres, words, fontsize=8)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, kind in zip(labels, span_ids, strict=True):
            label.set_color(colour(kind))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw_masks(path: Path) -> None:
    """Draw the paper's figure 2."""
    figure, grid = pyplot.subplots(2, 2, figsize=(7.4, 8), layout="constrained")
    for axes, (panel, span_ids) in zip(grid.flat, MASKS.items(), strict=True):
        draw_mask(axes, panel, span_ids, list(range(len(span_ids))))
        axes.set_xlabel(f"span_ids = {span_ids}", fontsize=9)
        axes.set_ylabel("query", fontsize=9)
    save(figure, path)


def draw_cache(path: Path) -> None:
    """Draw the one-span mask in the order of the text and in that of the cache."""
    span_ids = MASKS["one-span"]
    order = cache_order(span_ids)
    figure, grid = pyplot.subplots(1, 2, figsize=(8, 4.1), layout="constrained")
    draw_mask(grid[0], "text-order", span_ids, list(range(len(span_ids))))
    draw_mask(grid[1], "cache-order", [span_ids[i] for i in order], order)
    for axes, positions in zip(grid, (list(range(len(order))), order), strict=True):
        axes.set_xlabel(f"position_ids = {positions}", fontsize=9)
    context = span_ids.count(CONTEXT)
    steps = {
        f"read at once\n({context} rows)": context / 2,
        "written,\na row a step": context + 1.5,
    }
    for text, height in steps.items():
        grid[1].text(len(order) + 0.2, height, text, fontsize=8, va="center")
    grid[1].axhline(context, color="black", linewidth=1)
    grid[0].set_ylabel("query", fontsize=9)
    save(figure, path)


def save(figure, path: Path) -> None:
    """Write an SVG that is the same whenever and wherever it is drawn."""
    with matplotlib.rc_context({"svg.hashsalt": "magnet", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def main(folder: Path = IMAGES) -> None:
    """Draw all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_masks(folder / "masks.svg")
    draw_cache(folder / "cache.svg")


if __name__ == "__main__":
    main()
