"""The command in this process, and a tiny model in a folder."""

import json
from pathlib import Path

import pytest
from tiny import SENTENCES, make_model
from typer.testing import CliRunner, Result

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.cli import app


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    make_model().save_pretrained(path)
    return path


@pytest.fixture
def model(folder) -> MagnetLlamaForCausalLM:
    return MagnetLlamaForCausalLM.from_pretrained(folder)


@pytest.fixture
def magnet():
    """Runs `magnet` and checks its exit code; None is any."""

    def run(*words, code: int | None = 0, stdin: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words], input=stdin)
        assert code in (result.exit_code, None), result.output
        return result

    return run


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    return path


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]
