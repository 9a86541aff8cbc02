"""No code of a checkpoint runs, and standard input, which holds a user's texts, answers no question."""

import json
import shutil
from functools import partial

import huggingface_hub
import pytest
from test_model import add_lora

from modeling_magnet import MagnetLlamaForCausalLM, gguf_cache

TEXTS = "one\ny\ntwo\ny\ny\n"
"""Lines, of which a question whether to trust would take some for its answer."""

COMMANDS = {
    "encode": ["-"],
    "infill": ["--input", "-"],
    "generate": ["--input", "-", "--max-new-tokens", 1],
    "info": [],
    "export": ["out", "--to", "plain"],
}


@pytest.fixture
def ran(tmp_path):
    """A file that code writes when it is run."""
    return tmp_path / "ran"


def bring_code(folder, ran) -> None:
    """Give a folder a tokenizer of a class of its own, and where it has a config a model too."""
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    pass\n"
        "class Model(LlamaForCausalLM):\n    pass\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    model = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    tokenizer = {"AutoTokenizer": [None, "own.Tokenizer"]}
    for name, changes in (
        ("config.json", {"auto_map": model}),
        ("tokenizer_config.json", {"auto_map": tokenizer, "tokenizer_class": "Tokenizer"}),
    ):
        path = folder / name
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(params=["model", "adapter", "adapter's base"])
def place(request, folder, ran, tmp_path):
    """A model's folder that brings code, an adapter's, or an adapter's whose base does."""
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    shutil.copytree(folder, model)
    if request.param != "model":
        add_lora(MagnetLlamaForCausalLM.from_pretrained(model)).save_pretrained(adapter)
    if request.param == "adapter":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(model / name, adapter)
    bring_code(adapter if request.param == "adapter" else model, ran)
    return model if request.param == "model" else adapter


@pytest.mark.parametrize("command", COMMANDS)
def test_standard_input_is_never_asked_whether_to_trust(
    magnet, place, ran, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    lines = '{"text": "one ___"}\ny\n' if command == "infill" else TEXTS
    result = magnet(command, place, *COMMANDS[command], stdin=lines, code=None)
    assert not ran.exists() and not asked
    if result.exit_code == 0 and command == "encode":
        assert len(result.stdout.splitlines()) == len(TEXTS.splitlines())
    if result.exit_code:
        assert result.exit_code == 2 and "trust" in result.stderr


@pytest.mark.parametrize("kept", [False, True])
def test_what_lies_beside_a_gguf_file_is_not_run_either(
    magnet, packaged, ran, tmp_path, monkeypatch, kept
):
    """Neither where its model goes into the cache, nor where it is read each time."""
    package = tmp_path / "installed" / "tiny_llama"
    (package / "tokenizer_config.json").write_text("{}")
    bring_code(package, ran)
    if kept:
        elsewhere = partial(huggingface_hub.cached_assets_path, assets_dir=tmp_path / "assets")
        monkeypatch.setattr(gguf_cache, "MAX_FILE_BYTES", 1 << 30)
        monkeypatch.setattr(gguf_cache, "cached_assets_path", elsewhere)
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    result = magnet("encode", packaged, "-", stdin=TEXTS, code=None)
    assert not ran.exists() and not asked
    assert result.exit_code == 0 or "trust" in result.stderr
