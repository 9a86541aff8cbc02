"""The quickstart as a user runs it, on a tiny Llama."""

import ast
import json
import sys
import tomllib
from argparse import Namespace
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import resolve_name
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from processes import run

ROOT = Path(__file__).parents[1]

distributions = cache(packages_distributions)

EXTRAS = {
    "preference": "trl",
    "grl": "trl",
    "encode_on_ray": "ray",
    "quickstart": "train,eval,gguf",
}
"""What the documentation tells users to install for an example; for the others it is `examples`."""


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    from tiny import make_model

    folder = tmp_path_factory.mktemp("base") / "tiny"
    make_model(max_position_embeddings=2048).save_pretrained(folder)
    return folder


def quickstart(output, model, *arguments):
    return run("-m", "examples.quickstart", "--output", output, "--model", model, *arguments)


def test_quickstart(tmp_path, tiny_folder):
    output = tmp_path / "out"
    first = quickstart(output, tiny_folder, "--steps", "4")
    assert first.returncode == 0, first.stderr[-3000:]
    for line in (
        "infilling perplexity, both sides",
        "sentence similarity",
        "Infilling",
        "Generating",
    ):
        assert line in first.stdout
    results = [json.loads((output / name).read_text()) for name in ("before.json", "after.json")]
    assert results[0]["figures"] != results[1]["figures"]
    assert (output / "model" / "config.json").exists()
    assert (output / "adapter" / "adapter_model.safetensors").exists()

    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    second = quickstart(output, tiny_folder, "--steps", "4")
    assert second.returncode == 0 and "infilling perplexity" in second.stdout
    assert "Adapt it" not in second.stdout
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}

    other = quickstart(output, tiny_folder, "--steps", "5")
    assert other.returncode == 1 and "give another --output" in other.stderr


def test_a_model_of_another_origin_is_not_measured_as_the_quickstarts(tmp_path):
    """The README says how to put the released checkpoint where the quickstart writes its own."""
    from examples.quickstart import claim  # which needs the extra `eval`

    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit, match="the quickstart did not write it: move it away"):
        claim(tmp_path, Namespace(steps=None, output=tmp_path))
    assert not (tmp_path / "options.json").exists()


def test_the_sample_corpus_is_small_and_complete():
    data = ROOT / "examples" / "data"
    assert sum(path.stat().st_size for path in data.iterdir()) < 2_000_000
    described = (data / "README.md").read_text(encoding="utf-8")
    for path in data.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in described
    train, validation = (
        {
            json.loads(line)["title"]
            for line in (data / name).read_text(encoding="utf-8").splitlines()
        }
        for name in ("wiki-train.jsonl", "wiki-validation.jsonl")
    )
    assert not train & validation


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_what_an_example_imports_is_in_its_extra(path):
    declared = {"fsspec", "pyarrow", "tokenizers"}  # come with datasets and transformers
    todo = [f"modeling-magnet[{EXTRAS.get(path.stem, 'examples')}]"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    while todo:
        one = Requirement(todo.pop())
        declared.add(one.name)
        if one.name == "modeling-magnet":
            todo += project["dependencies"]
            for extra in one.extras:
                todo += project["optional-dependencies"][extra]
    for package, user in imported(path, set()):
        if package not in sys.stdlib_module_names:
            names = {name.lower() for name in (package, *distributions().get(package, ()))}
            assert declared & names, f"{user} imports {package}"


def imported(path: Path, seen: set[str]) -> Iterator[tuple[str, Path]]:
    """The packages that a module needs to be imported, and our module that imports each."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        for name in set(names) - seen:
            seen.add(name)
            if (own := ROOT / f"{name.replace('.', '/')}.py").is_file():
                yield from imported(own, seen)
            elif not (ROOT / name.partition(".")[0]).is_dir():
                yield name.partition(".")[0], path
