"""`magnet export --to onnx`: onnxruntime gives the vectors of `encode`."""

import json

import numpy as np
import pytest
import torch
from tiny import SENTENCES, WINDOW, make_model
from transformers import AutoConfig, AutoTokenizer

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.cli import exporting

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: extra onnx")

TEXTS = [*SENTENCES, "", "a", "many words of one long text " * 3]


def encode(folder, texts, output="sentence_embedding", **settings):
    """As a user of the folder would: its tokenizer, the graph, and no torch."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, padding=True, return_tensors="np", **settings)
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    names = [i.name for i in session.get_inputs()]
    assert names == ["input_ids", "attention_mask"]
    return session.run([output], {name: inputs[name] for name in names})[0]


@pytest.mark.parametrize(
    "architecture, settings", [("llama", {"pooling": "mean"}), ("gemma3_text", {})]
)
def test_vectors_are_those_of_encode(tmp_path, architecture, settings):
    """Batches of any size and length, padded on either side; texts that are cut included."""
    model = make_model(architecture=architecture)
    model.config.magnet = settings
    model.tokenizer.pad_token = None  # as Llama's is
    longest, prompt = model.magnet_settings.max_length, model.magnet_settings.prompts["sentence"]
    expected = model.encode(TEXTS)
    with pytest.warns(UserWarning, match="1 of 1 texts were cut"):
        cut = model.encode("word " * 300, truncation=True)
    exporting.export(model, "onnx", tmp_path / "m")
    texts = [prompt + text for text in TEXTS]
    for side in ("right", "left"):
        found = encode(tmp_path / "m", texts, padding_side=side)
        print(f"largest difference {abs(found - expected).max():.1e}")
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(encode(tmp_path / "m", texts[:1]), expected[:1], atol=1e-4)
    found = encode(tmp_path / "m", [prompt + "word " * 300], truncation=True)
    np.testing.assert_allclose(found, cut[None], atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "m").model_max_length == longest
    assert longest == (WINDOW if architecture == "gemma3_text" else 256)
    hidden = encode(tmp_path / "m", texts[:2], "last_hidden_state")
    assert hidden.shape[0] == 2 and hidden.shape[2] == 48 and hidden.dtype == np.float32


def test_the_folder_is_an_encoder_without_code_and_weights(folder, tmp_path):
    """In float32, whatever the model was loaded in: onnxruntime has few operators for bfloat16."""
    load = MagnetLlamaForCausalLM.from_pretrained
    expected = load(folder, dtype=torch.bfloat16).float().encode(SENTENCES, prompt="")
    out = tmp_path / "m"
    exporting.export(load(folder, dtype=torch.bfloat16), "onnx", out)
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "modules.json", "onnx", "tokenizer.json"}
    assert not [name for name in names if name.endswith((".py", ".safetensors"))]
    config = json.loads((out / "config.json").read_text())
    assert config["is_causal"] is False and config["architectures"] == ["LlamaModel"]
    assert not {"auto_map", "magnet"} & set(config) and config["dtype"] == "float32"
    assert AutoConfig.from_pretrained(out).hidden_size == 48
    np.testing.assert_allclose(encode(out, SENTENCES), expected, atol=1e-4)
