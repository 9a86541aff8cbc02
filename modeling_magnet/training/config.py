"""Defines `MagnetConfig`, the arguments of `MagnetTrainer` when data and model are Python objects."""

from dataclasses import dataclass, field
from typing import Any

from .arguments import ExampleArguments, MagnetTrainingArguments


@dataclass
class MagnetConfig(ExampleArguments, MagnetTrainingArguments):
    """transformers' `TrainingArguments`, the objectives' weights, and how an example is made.

    The length of a run is `max_steps`, or `num_train_epochs` over the text (over the pairs if there is no
    text). `per_device_train_batch_size` counts blocks of text (pairs if there is no text).
    """

    objective_schedule: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={
            "help": "Phases in order, each with its steps and the objectives' weights. Default: one phase, in "
            "which each objective that the columns allow has the weight 1."
        },
    )
    start_token: str = field(
        default="auto",
        metadata={
            "help": "Token that begins every sequence, or `none`. `auto` takes a Magnet folder's setting. For "
            "other models it is measured on the text, or without text is the tokenizer's."
        },
    )
    mask_token: str = field(
        default="_", metadata={"help": "A single token of the vocabulary (paper: `_`)."}
    )

    def __post_init__(self):
        ExampleArguments.__post_init__(self)
        MagnetTrainingArguments.__post_init__(self)
