"""A shipped adapter stands on its base, and is the run's model but for bf16."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import SENTENCES
from transformers import AutoModel

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.training import release
from modeling_magnet.training.train import train


def test_a_released_adapter_is_the_run_s_model(run, corpus):
    merged = train(run())
    base, output = corpus / "out" / "base", corpus / "magnet-tiny"
    (corpus / "results.md").write_text("## Results\n\nIt was measured.\n")
    command = ["--run", corpus / "out", "--base", base, "--sections", corpus / "results.md"]
    command += ["--license", "apache-2.0", "--output", output]
    for _ in range(2):  # a second time it is replaced
        release.main([str(word) for word in command])
    weights = load_file(output / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    model = MagnetLlamaForCausalLM.from_pretrained(output).eval()
    assert model.config.magnet == merged.config.magnet
    vectors, expected = model.encode(SENTENCES), merged.encode(SENTENCES)
    by_auto = AutoModel.from_pretrained(output, trust_remote_code=True)
    assert type(by_auto) is MagnetLlamaForCausalLM  # of the installed package
    assert np.array_equal(by_auto.encode(SENTENCES), vectors)
    assert np.corrcoef(vectors.ravel(), expected.ravel())[0, 1] > 0.999
    plain = MagnetLlamaForCausalLM.from_pretrained(base).eval()
    assert abs(vectors - plain.encode(SENTENCES)).max() > 0.05  # the adapter is there
    ids = torch.tensor([[5, 6, 7]])
    with model.without_adapter():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    card = (output / "README.md").read_text()
    assert "It was measured." in card and "license: apache-2.0" in card
    assert 'load_magnet("checkpoints/magnet-tiny")' in card
    assert str(corpus) not in card
    assert json.loads((output / "config.json").read_text())["magnet"]["start_token_id"] == 0


def test_a_run_without_an_adapter_is_refused(corpus):
    with pytest.raises(FileNotFoundError, match="has no adapter/: give a run that is finished"):
        release.release(corpus, "base", corpus / "released")
    assert not (corpus / "released").exists()
