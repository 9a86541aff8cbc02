"""The quickstart as a user runs it, on a tiny Llama."""

import json
from pathlib import Path

import pytest
from processes import run

ROOT = Path(__file__).parents[1]


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
