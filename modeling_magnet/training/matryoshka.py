"""Training over widths and layers (Li et al., "2D Matryoshka Sentence Embeddings", 2024).

Each step draws a width and a layer. The losses on sentence vectors are taken again on the vectors cut to
that width, on those after that layer, through the model's own norm and pooling, and on these cut; and
the texts' similarities after that layer are drawn to those after the last.
"""

import random
from collections.abc import Callable
from typing import Any

import torch

from .arguments import MagnetTrainingArguments
from .objectives import distillation

Losses = Callable[[torch.Tensor], dict[str, torch.Tensor]]
"""From vectors (views, pairs, hidden) to losses by name."""


def draw_sizes(args: MagnetTrainingArguments, step: int) -> tuple[int | None, int | None]:
    """The number of layers and the width of an optimizer step: the same in each process.

    Returns:
        One of `matryoshka_layers` and one of `matryoshka_dims`; None where there are none.
    """
    numbers = random.Random(f"{args.seed} {step}")
    layers, dims = args.matryoshka_layers, args.matryoshka_dims
    return (
        numbers.choice(layers) if layers else None,
        numbers.choice(dims) if dims else None,
    )


def shorter_losses(
    losses_of: Losses,
    vectors: torch.Tensor,
    early: torch.Tensor | None,
    width: int | None,
    temperature: float,
) -> dict[str, torch.Tensor]:
    """The same losses on shorter and earlier vectors, and the divergence of the early ones.

    Args:
        losses_of: what the vectors are trained by.
        vectors: (views, pairs, hidden) after the last layer.
        early: (views, pairs, hidden) after the layer that was drawn, or None.
        width: that was drawn, or None.
        temperature: of the divergence.

    Returns:
        By name the mean over the cut, the early and the cut early vectors; each with the divergence of
        the early similarities from the last layer's added, which stay as they are.
    """
    # The paper compares the vectors' own softmax over their dimensions. In a decoder one dimension of
    # the state is so much larger than the others that this softmax is near 1 there, whatever the text.
    whole = [vectors] if early is None else [vectors, early]
    shorter = whole[1:] + ([v[..., :width] for v in whole] if width is not None else [])
    found = [losses_of(version) for version in shorter]
    means = {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}
    if early is None:
        return means
    texts, teacher = early.flatten(0, 1), vectors.detach().flatten(0, 1)
    divergence = distillation(texts, teacher, temperature)
    return {name: mean + divergence for name, mean in means.items()}


def sizes_of(args: MagnetTrainingArguments, config: Any) -> dict[str, list[int]]:
    """What a checkpoint's settings note of the widths and layers that a run trains, the whole ones included.

    Args:
        args: of the run.
        config: the model's.

    Returns:
        Settings by name; none where the run trains none.

    Raises:
        ValueError: the model has not more layers or dimensions than one of them.
    """
    sizes = {}
    for name, numbers, held, what in (
        ("matryoshka_layers", args.matryoshka_layers, config.num_hidden_layers, "layers"),
        ("matryoshka_dims", args.matryoshka_dims, config.hidden_size, "dimensions"),
    ):
        for number in numbers:
            if not 0 < number < held:
                raise ValueError(
                    f"{name} holds {number}: the model has {held} {what}, give numbers from 1 to "
                    f"{held - 1}"
                )
        if numbers:
            sizes[name] = sorted({*numbers, held})
    return sizes
