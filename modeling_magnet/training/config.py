"""`MagnetConfig`: what `MagnetTrainer` is told where data and model come as Python objects."""

from dataclasses import dataclass, field
from typing import Any

from .arguments import ExampleArguments, MagnetTrainingArguments


@dataclass
class MagnetConfig(ExampleArguments, MagnetTrainingArguments):
    """transformers' `TrainingArguments`, the objectives' weights, and how an example is made.

    The length of a run is `max_steps`, or `num_train_epochs` of the text, or without text of the pairs.
    `per_device_train_batch_size` counts blocks of text, or without text pairs.
    """

    objective_schedule: list[dict[str, Any]] = field(
        default_factory=list,
        metadata={
            "help": "Phases in order, each with its steps and the objectives' weights. Default: one in "
            "which each objective that the columns allow has the weight 1."
        },
    )
    start_token: str = field(
        default="auto",
        metadata={
            "help": "Token that begins every sequence; `none` is none; `auto` is what a Magnet folder says, "
            "and for other models is measured on the text, or without text is the tokenizer's."
        },
    )
    mask_token: str = field(
        default="_", metadata={"help": "A single token of the vocabulary (paper: `_`)."}
    )

    def __post_init__(self):
        ExampleArguments.__post_init__(self)
        MagnetTrainingArguments.__post_init__(self)
