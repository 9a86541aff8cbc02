"""Trains over widths and layers (Li et al., "2D Matryoshka Sentence Embeddings", 2024).

Each step draws a width and a layer, and takes the losses on sentence vectors three more times: on the
vectors cut to that width, on those after that layer (through the model's own norm and pooling), and on
those after that layer, cut. It also draws the similarities after that layer to those after the last.
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
    """Draw the number of layers and the width of an optimizer step, the same in each process.

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
    """The losses on shorter and earlier vectors, and the divergence of the early ones.

    Args:
        losses_of: computes the losses on vectors.
        vectors: (views, pairs, hidden) after the last layer.
        early: (views, pairs, hidden) after the layer that was drawn, or None.
        width: that was drawn, or None.
        temperature: of the divergence.

    Returns:
        The mean over the cut, the early and the cut early vectors, by name. To each is added the
        divergence of the early similarities from the last layer's, which get no gradient from it.
    """
    # The paper compares the vectors' own softmax over their dimensions. In a decoder one dimension of
    # the state is so much larger than the others that this softmax is near 1 there for every text.
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
    """A checkpoint's settings for the widths and layers that a run trains, including the full ones.

    Args:
        args: of the run.
        config: the model's.

    Returns:
        Settings by name; empty if the run trains none.

    Raises:
        ValueError: one of them is not below the model's number of layers or dimensions.
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
