"""`magnet export --to onnx`: onnxruntime gives the vectors of `encode`."""

import json

import numpy as np
import pytest
import torch
from tiny import SENTENCES, WINDOW, make_model
from transformers import AutoConfig, AutoTokenizer

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


@pytest.fixture(
    scope="module",
    params=[
        ("llama", {"pooling": "mean"}),
        ("gemma3_text", {}),
        ("gemma2", {"pooling": "weighted_mean"}),
    ],
    ids=lambda p: p[0],
)
def exported(request, tmp_path_factory):
    """A model in bfloat16, of which onnxruntime knows little, and its folder; it is float32 then."""
    architecture, settings = request.param
    model = make_model(architecture=architecture).to(torch.bfloat16)
    model.config.magnet = settings
    model.tokenizer.pad_token = None  # as Llama's is
    folder = tmp_path_factory.mktemp("onnx") / architecture
    exporting.export(model, "onnx", folder)
    return model.float(), folder


def test_vectors_are_those_of_encode(exported):
    """Batches of any size and length, padded on either side; texts that are cut included."""
    model, folder = exported
    longest, prompt = model.magnet_settings.max_length, model.magnet_settings.prompts["sentence"]
    expected = model.encode(TEXTS)
    with pytest.warns(UserWarning, match="1 of 1 texts were cut"):
        cut = model.encode("word " * 300, truncation=True)
    texts = [prompt + text for text in TEXTS]
    for side in ("right", "left"):
        found = encode(folder, texts, padding_side=side)
        print(f"largest difference {abs(found - expected).max():.1e}")
        np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(encode(folder, texts[:1]), expected[:1], atol=1e-4)
    found = encode(folder, [prompt + "word " * 300], truncation=True)
    np.testing.assert_allclose(found, cut[None], atol=1e-4)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == longest
    assert longest == (WINDOW if folder.name.startswith("gemma") else 256)
    hidden = encode(folder, texts[:2], "last_hidden_state")
    assert hidden.shape[0] == 2 and hidden.shape[2] == 48 and hidden.dtype == np.float32


def test_the_folder_is_an_encoder_without_code_and_weights(exported):
    model, folder = exported
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "onnx", "tokenizer.json"}
    assert ("modules.json" in names) == (model.magnet_settings.pooling in ("end", "first"))
    assert not [name for name in names if name.endswith((".py", ".safetensors"))]
    config = json.loads((folder / "config.json").read_text())
    assert config["is_causal"] is False
    assert config["architectures"] == [type(model.base_model).__name__]
    assert not {"auto_map", "magnet"} & set(config) and config["dtype"] == "float32"
    assert AutoConfig.from_pretrained(folder).hidden_size == 48
