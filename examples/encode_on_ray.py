"""Encode a corpus on many machines: Ray Data hands files to a pool of workers that hold the model.

    pip install -e ".[ray]"
    python -m examples.encode_on_ray outputs/quickstart/model corpus/ --output vectors --workers 8 --gpus 1
    python -m examples.encode_on_ray outputs/quickstart/model corpus/ --output vectors --workers 8 --gpus 0.5

A file of the corpus (.parquet, .jsonl, .txt, ...) is a shard: `corpus/a.parquet` becomes `vectors/a.parquet`, with the
columns `index` and `vector`, each written whole or not at all. After whatever stopped it the same command
encodes the files that are missing. A worker that dies is replaced, and its file is encoded again.

On a cluster run it where `ray status` shows the machines; model, corpus and output are on storage that
all of them see. The rows of a file are read and written as they come, so a file may be of any size, but one
worker encodes it: give at least as many files as workers.
"""

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from modeling_magnet.atomic import atomic_write
from modeling_magnet.cli.loading import load_model
from modeling_magnet.cli.options import Encoding
from modeling_magnet.cli.reading import READERS, check_inputs, identify
from modeling_magnet.cli.vectors import Encoder, encode_to_file
from modeling_magnet.locking import folder_lock

try:
    import ray
except ModuleNotFoundError as error:
    raise SystemExit('Ray is not installed: pip install -e ".[ray]"') from error

MANIFEST = "manifest.json"


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder or a Hub id, the same on every machine")
    parser.add_argument("corpus", nargs="+", help="files, or folders of files")
    parser.add_argument("--output", type=Path, required=True, help="a folder of .parquet files")
    parser.add_argument("--column", help="where the text is (default: text)")
    parser.add_argument("--prompt-name", help="of the checkpoint (default: its own)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--normalize", action="store_true", help="vectors of length 1")
    parser.add_argument("--truncation", action="store_true", help="cut texts that are too long")
    parser.add_argument("--keep-text", action="store_true", help="a column text in the output")
    parser.add_argument("--workers", type=int, default=1, help="processes with a model each")
    parser.add_argument("--gpus", type=float, default=0, help="of a worker; 0.5: two share one")
    parser.add_argument("--cpus", type=float, default=1, help="of a worker")
    options = parser.parse_args(command_line)
    encoding = Encoding(**{name: getattr(options, name) for name in (
        "column", "prompt_name", "batch_size", "normalize", "truncation", "keep_text",
    )})  # fmt: skip

    shards = shards_of(options.corpus, options.output)
    for file, output in shards.items():
        check_inputs([file], output, [options.column or "text"])
    identity = Encoder(load_model(options.model, "cpu"), encoding).identity()
    options.output.mkdir(parents=True, exist_ok=True)
    with folder_lock(options.output):
        claim(options.output / MANIFEST, identity, list(shards))
        todo = [
            {"file": file, "output": output}
            for file, output in shards.items()
            if not Path(output).exists()
        ]
        print(f"{len(shards) - len(todo)} of {len(shards)} files were encoded already")
        if todo:
            encode(
                todo, min(options.workers, len(todo)), options.cpus, options.gpus,
                model=options.model, encoding=encoding, identity=identity,
            )  # fmt: skip
    print(f"The vectors are in {options.output}")


def encode(
    todo: list[dict[str, str]], workers: int, cpus: float, gpus: float, **encoder: Any
) -> None:
    """Encode files on a pool of workers, of which each is an `EncodeFiles(**encoder)`."""
    ray.init(ignore_reinit_error=True)
    files = ray.data.from_items(todo, override_num_blocks=len(todo))  # a task is a file
    done = files.map_batches(
        EncodeFiles, batch_size=1, compute=ray.data.ActorPoolStrategy(size=workers), num_cpus=cpus, num_gpus=gpus,
        fn_constructor_kwargs=encoder,
    )  # fmt: skip
    for row in done.iter_rows():
        print(f"{row['output']}: {row['rows']} rows, {row['skipped']} skipped")


class EncodeFiles:
    """A worker, which loads the model once.

    Args:
        model: a folder or Hub id.
        encoding: how to encode.
        identity: what the vectors of the run depend on, the model's weights included.

    Raises:
        ValueError: the model on this machine is another.
    """

    def __init__(self, model: str, encoding: Encoding, identity: dict[str, Any]):
        self.encoder = Encoder(load_model(model), encoding)
        if self.encoder.identity() != identity:
            raise ValueError(
                f"{model} is another model on this machine than where the run was started, or the "
                "package another version"
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Encode the files of a batch; each output appears when it is complete."""
        done = batch | {"rows": [], "skipped": []}
        for file, output in zip(batch["file"], batch["output"], strict=True):
            rows, skipped = encode_to_file(self.encoder, [file], Path(output), "parquet")
            done["rows"].append(rows)
            done["skipped"].append(skipped.count)
        return done


def shards_of(corpus: list[str], output: Path) -> dict[str, str]:
    """The files of a corpus, each with the file that its vectors go to, by absolute paths.

    Raises:
        SystemExit: there are none, or two would go to the same.
    """
    files = []
    for place in map(Path, corpus):
        inside = (
            sorted(path for path in place.iterdir() if path.suffix in READERS)
            if place.is_dir()
            else [place]
        )
        files += [str(path.resolve()) for path in inside]
    if not files:
        raise SystemExit(f"no file of {', '.join(READERS)} in {', '.join(corpus)}")
    shards = {file: str(output.resolve() / f"{Path(file).stem}.parquet") for file in files}
    twice = [path for path, count in Counter(shards.values()).items() if count > 1]
    if twice:
        raise SystemExit(
            f"two files of the corpus would both become {twice[0]}: give them other names"
        )
    return shards


def claim(manifest: Path, identity: dict[str, Any], files: list[str]) -> None:
    """Note what a folder's vectors are of, or find that a run goes on with the same.

    Files may be added to a corpus, but none that was noted may change.

    Raises:
        SystemExit: the folder was started with something else.
    """
    inputs = {path: change for path, *change in identify(files) or []}
    if manifest.exists():
        found = json.loads(manifest.read_text(encoding="utf-8"))
        if found["identity"] != identity:
            other = [name for name in identity if found["identity"].get(name) != identity[name]]
            raise SystemExit(
                f"{manifest.parent} was started with another {', '.join(other)}: give a new folder"
            )
        changed = [
            path for path, noted in found["inputs"].items() if inputs.get(path, noted) != noted
        ]
        if changed:
            raise SystemExit(
                f"{changed[0]} changed since {manifest.parent} was started: give a new folder"
            )
        inputs = found["inputs"] | inputs
    with atomic_write(manifest) as temporary:
        temporary.write_text(
            json.dumps({"identity": identity, "inputs": inputs}, indent=2), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
