"""What is wrong with a command line is said before torch is imported, in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]

FAULTS = {
    "info /nope": "'/nope' is neither a folder nor a Hub id",
    "info nope/": "'nope/' is neither a folder",
    "info a.txt": "a.txt is a file: give the folder of a model",
    "info empty": "empty is a folder without a model: it has neither config.json nor",
    "encode MODEL gone.txt": "gone.txt does not exist: give .txt, .jsonl, .csv, .tsv or .parquet",
    "encode MODEL a.pdf": "a.pdf cannot be read: give .txt",
    "encode MODEL empty": "empty cannot be read",
    "encode MODEL - -": "named twice",
    "encode MODEL body.jsonl": "body.jsonl has no column text; it has body, n: name one with --column",
    "encode MODEL body.csv": "body.csv has no column text; it has body, n: name one with --column",
    "encode MODEL body.tsv --column b": "body.tsv has no column b; it has body, n",
    "encode MODEL body.parquet": "body.parquet has no column text; it has body",
    "encode MODEL broken.parquet": "broken.parquet, after row 0: ",
    "encode MODEL a.txt -o out.csv": "into a file that ends in .npy, .parquet or .jsonl, or into a folder",
    "encode MODEL a.txt -o a.txt": "vectors go into a file that ends in .npy, .parquet or .jsonl",
    "encode MODEL body.jsonl -o body.jsonl": "body.jsonl is both input and output: give another output",
    "encode MODEL a.txt -o body.tsv": "vectors go into a file that ends in",
    "encode MODEL a.txt -o no/such/v.npy": "the folder of no/such/v.npy does not exist: create no/such",
    "encode MODEL a.txt -o v.npy --format jsonl": "--format and --shard-size are for a folder",
    "encode MODEL a.txt --shard-size 5": "--format and --shard-size are for a folder",
    "encode MODEL a.txt -o out --shard-size 0": "--shard-size is 0: give 1 or more",
    "encode MODEL a.txt -o out --format csv": "--format is 'csv': give one of npy, parquet, jsonl",
    "encode MODEL a.txt --batch-size 0": "--batch-size is 0: give 1 or more",
    "encode MODEL a.txt --truncate-dim 0": "--truncate-dim is 0: give 1 or more",
    "encode MODEL a.txt --precision int8": "--precision is 'int8': give one of float32, binary, ubinary",
    "encode MODEL a.txt --dtype int4": "--dtype is 'int4': give one of auto, float32",
    "encode MODEL a.txt --device nonsense": "--device is 'nonsense': give one of auto, cpu, cuda",
    "encode MODEL a.txt --device meta": "--device is 'meta': give one of",
    "encode MODEL a.txt --prompt x --prompt-name STS": "--prompt-name and --prompt exclude each other",
    "encode MODEL a.txt -o v.npy --keep-text": "--keep-text needs .parquet or .jsonl",
    "encode MODEL a.txt -o v.npy --tokens": "--tokens gives each text its own number of vectors",
    "encode MODEL a.txt --tokens --words": "--tokens and --words exclude each other",
    "encode MODEL a.txt --words --normalize": "--words takes no prompt, normalize, truncate-dim or",
    "encode MODEL a.txt --words --truncation": "--words does not cut texts",
    "infill MODEL": "give --prefix and --suffix, or --text, or --input",
    "infill MODEL --text a___ --prefix b": "give --prefix and --suffix, or --text, or --input",
    "infill MODEL --prefix a": 'prefix is given without suffix: give both, "" where it is empty',
    "infill MODEL --suffix a": 'suffix is given without prefix: give both, "" where it is empty',
    "infill MODEL --text nothing": "no ___ in the text",
    "infill MODEL --text a___ --blank=": "--blank is '': give what marks a blank",
    "infill MODEL --text a___ --span-length 0": "--span-length is 0: give 1 or more",
    "infill MODEL --text a___ --max-new-tokens 0": "--max-new-tokens is 0: give 1 or more",
    "infill MODEL --text a___ --batch-size 0": "--batch-size is 0: give 1 or more",
    "infill MODEL --text a___ --samples 0": "--samples is 0: give 1 or more",
    "infill MODEL --text a___ -o out.csv": "JSON lines go into a file that ends in .jsonl",
    "infill MODEL --text a___ -o no/out.jsonl": "the folder of no/out.jsonl does not exist: create no",
    "infill MODEL --text a___ -o empty": "empty is a folder: give the name of a file",
    "infill MODEL --input gone.jsonl": "gone.jsonl does not exist",
    "infill MODEL --input a.txt -o a.txt": "JSON lines go into a file that ends in .jsonl",
    "infill MODEL --input body.jsonl -o body.jsonl": "body.jsonl is both input and output",
    "infill MODEL --input body.jsonl": "none of the columns text, prefix, suffix, parts, span_length; it has body",
    "infill MODEL --input - --stream": "--stream shows one text: give --prefix",
    "infill MODEL --text a___b___ --stream": "--stream shows one blank",
    "infill MODEL --text a___b --span-length 2 --stream --samples 2": "--stream shows one sample",
    "infill MODEL --text a___b --span-length 2 --stream -o a.jsonl": "leave --output out",
    "generate MODEL": "give a PROMPT, or --input FILE",
    "generate MODEL a --input b.txt": "give a PROMPT, or --input FILE",
    "generate MODEL --input body.jsonl": "has no column text; it has body, n: name one with --column",
    "generate MODEL --input a.txt --stream": "--stream shows one text: give a PROMPT",
    "generate MODEL a --stream --samples 2": "--stream shows one sample",
    "generate MODEL a --temperature 0": "--temperature is 0.0: give more than 0, or leave it out",
    "generate MODEL a --temperature nan": "--temperature is nan: give more than 0",
    "generate MODEL a --top-p 1.5": "--top-p is 1.5: give more than 0, up to 1",
    "generate MODEL a --top-k 0": "--top-k is 0: give 1 or more",
    "generate MODEL a --seed -1": "--seed is -1: give 0 to 4294967295",
    "generate MODEL a --max-new-tokens 0": "--max-new-tokens is 0: give 1 or more",
    "generate MODEL a -o a.txt": "JSON lines go into a file that ends in .jsonl",
    "export MODEL out --to tflite": "--to is 'tflite': give one of magnet, plain, encoder, onnx, gguf",
    "export MODEL full --to plain": "full exists and is not empty: give a new folder",
    "export MODEL a.txt --to plain": "a.txt exists and is not empty: give a new folder",
    "export MODEL out --to gguf": "--to gguf writes a file: give a name that ends in .gguf",
    "export MODEL no/out.gguf --to gguf": "the folder of no/out.gguf does not exist: create no first",
}
"""Command lines, and what they get on standard error."""

RUN_ALL = """
import json, sys
from typer.testing import CliRunner
from modeling_magnet.cli import app
found = []
for words in json.load(sys.stdin):
    result = CliRunner().invoke(app, words)
    slow = [name for name in ("torch", "transformers") if name in sys.modules]
    found.append([result.exit_code, result.stderr, slow])
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory) -> Path:
    """Files of all kinds, none of which is what it should be."""
    path = tmp_path_factory.mktemp("faults")
    for name, content in {
        "a.txt": "A cat.\n",
        "a.pdf": "A cat.\n",
        "body.jsonl": '{"body": "a", "n": 1}\n' * 3,
        "body.csv": "body,n\na,1\n",
        "body.tsv": "body\tn\na\t1\n",
        "broken.parquet": "no",
        "full/mine.txt": "mine",
    }.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(content)
    (path / "empty").mkdir()
    pq.write_table(pa.table({"body": ["a"]}), path / "body.parquet")
    return path


@pytest.fixture(scope="module")
def found(place, folder) -> dict:
    """What each command line does, all in one new process: exit code, errors, slow imports."""
    words = [[word.replace("MODEL", str(folder)) for word in line.split()] for line in FAULTS]
    files = sorted(str(path) for path in place.rglob("*"))
    result = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps(words), capture_output=True, text=True,
        cwd=place, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    assert sorted(str(path) for path in place.rglob("*")) == files  # nothing was written
    return dict(zip(FAULTS, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("line", FAULTS)
def test_a_fault_is_said_at_once(found, line):
    code, error, slow = found[line]
    assert code == 2 and slow == []
    assert error.startswith("magnet: ") and len(error.splitlines()) == 1
    assert FAULTS[line] in error
