"""Every block of the README runs; every command in it, and in the folders' READMEs, is one that there is."""

import doctest

import pytest
import torch
from documents import ROOT, check_command, commands, run_blocks

from modeling_magnet import MagnetMixin, load_magnet
from modeling_magnet.encoding import EncodingMixin
from modeling_magnet.infilling import InfillingMixin

README = ROOT / "README.md"
FOLDERS = [ROOT / name / "README.md" for name in ("training", "evaluation", "benchmarks")]


def test_the_python_blocks_run_in_order(base_model, tmp_path, monkeypatch):
    """On the real base model, saved where the quickstart saves."""
    from server_process import serving_here  # which needs the extra `serve`

    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    for name in ("base", "model"):
        base_model.save_pretrained(f"outputs/quickstart/{name}")
    released = load_magnet(ROOT / "checkpoints" / "magnet-smollm2-135m").eval()
    with serving_here(released, "magnet-smollm2-135m") as address:
        namespace = run_blocks(README, server=address)
    assert namespace["vectors"].shape == (3, 576)
    assert namespace["best"] == {"corpus_id": 1, "score": pytest.approx(0.629, abs=1e-3)}
    assert namespace["middles"] == ["a Polish-born physicist,"]
    assert namespace["text"] == "The capital of France is Paris."
    assert namespace["difference"] < 1e-4
    assert len(namespace["answer"].data) == 2 and namespace["filled"].choices[0].text == " envelope"


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


MEASURES = (ROOT / "training" / "measure_released").read_text(encoding="utf-8").splitlines()
MEASURES = [line.strip() for line in MEASURES if line.startswith("  python -m")]


@pytest.mark.parametrize("command", [*commands(README, *FOLDERS), *MEASURES])
def test_every_command_exists(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check_command(command)
