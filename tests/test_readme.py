"""Every block of the README runs; every command in it is one that there is."""

import doctest
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from typer.main import get_command

from modeling_magnet import MagnetMixin
from modeling_magnet.cli import app
from modeling_magnet.encoding import EncodingMixin
from modeling_magnet.infilling import InfillingMixin
from training.train import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FOLDERS = [
    (ROOT / name / "README.md").read_text("utf-8")
    for name in ("training", "evaluation", "benchmarks")
]
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall(README)


def commands():
    for language, block in BLOCKS + [found for text in FOLDERS for found in BLOCK.findall(text)]:
        if language == "bash":
            lines = block.replace("\\\n", " ").splitlines()
            yield from (line.split("  #")[0].strip() for line in lines if line.strip())


def test_the_python_blocks_run_in_order(base_model, tmp_path, monkeypatch):
    """On the real base model, saved where the quickstart saves."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "model"):
        base_model.save_pretrained(f"outputs/quickstart/{name}")
    namespace: dict = {}
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["vectors"].shape == (2, 576)
    assert namespace["words"].shape == (3, 576)
    assert isinstance(namespace["middle"], str) and len(namespace["middles"]) == 2
    assert namespace["text"].startswith("Once upon a time")
    assert namespace["logits"].shape[-1] == 49152


def test_the_docstrings_examples_are_true(base_model):
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(
        MagnetMixin, globs={"model": base_model, "torch": torch}
    ):
        runner.run(test)
    for mixin in (EncodingMixin, InfillingMixin):
        for test in doctest.DocTestFinder().find(mixin, globs={"model": base_model}):
            runner.run(test)
    result = runner.summarize()
    assert result.failed == 0 and result.attempted >= 7


@pytest.mark.parametrize("command", commands())
def test_every_command_exists(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = shlex.split(command)
    if words[:3] == ["accelerate", "launch", "--config_file"]:
        assert Path(words[3]).exists()
        words = ["python", *words[words.index("-m") :]]
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], check=True, capture_output=True)
    elif words[:3] == ["pip", "install", "-e"]:
        extra = words[3].removeprefix(".[").removesuffix("]")
        assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    elif words[0] == "magnet":
        group = get_command(app)
        with group.make_context("magnet", words[1:]) as context:
            name, subcommand, rest = group.resolve_command(context, words[1:])
            subcommand.make_context(name, rest, parent=context)  # parses, and runs nothing
    elif words[:3] == ["python", "-m", "training.train"]:
        model, data, _ = parse([*words[3:], "--use_cpu"])
        assert model.model and data.text
    else:
        assert words[:2] == ["python", "-m"]
        names = [
            words[2],
            "evaluation.run",
            "evaluation.inputs",
        ]  # whose flags others pass on or share
        modules = [ROOT / (name.replace(".", "/") + ".py") for name in names]
        text = "".join(module.read_text(encoding="utf-8") for module in modules)
        flags = re.findall(r'add(?:_argument)?\(\s*"(--[\w-]+)"', text)
        assert set(re.findall(r"--[\w-]+", command)) <= set(flags)


def test_no_link_is_dead():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            headings = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
            assert target[1:] in [h.lower().replace(" ", "-") for h in headings]
        elif not target.startswith("http"):
            assert (ROOT / target).exists()
