"""What goes to the Hub: a card that it understands, the package's own code, versions that can be pinned."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from documents import ROOT
from hub_server import HubServer
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from tiny import ARCHITECTURES, SENTENCES, make_model

import modeling_magnet
from modeling_magnet.training.card import SMOLLM2_ID, write_card

PACKAGE = Path(modeling_magnet.__file__).parent
RELATIONS = {"finetune", "adapter", "merge", "quantized"}
"""What the Hub knows between a model and its base."""

SETTINGS = {
    "model": "smollm2", "lora_r": 16, "lora_alpha": 32, "block_length": 256, "pairs_per_block": 2,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "processes": 1, "seed": 42,
    "text": ["Salesforce/wikitext"], "pairs": ["examples/data/pairs-train.jsonl"],
    "validation_text": ["Salesforce/wikitext"], "validation_pairs": ["pairs.jsonl"],
    "validation_split": "validation", "learning_rate": 1e-3, "lr_scheduler_type": "cosine",
    "temperature": 0.1, "objective_schedule": [{"steps": 30, "mntp": 1, "msg": 1}],
}  # fmt: skip
CURVES = {
    "mntp": [[10, 4.0], [30, 3.5]],
    "eval_span_perplexity": [[0, 20.0], [30, 15.5]],
    "eval_left_only_perplexity": [[0, 17.0], [30, 17.25]],
    "eval_pair_accuracy": [[30, 0.875]],
}
STS = {
    "figures": {
        "STSB-dev": {"value": 25.79, "low": 15.7, "high": 35.4, "examples": 400},
        "STSB-dev, default prompt": {"value": 63.81, "low": 58.0, "high": 69.2, "examples": 400},
    },
    "suite": "quick",
}


def written(folder: Path, settings: dict | None = None, curves: dict | None = None, **arguments):
    """The card of a run with these settings and curves, read back by the Hub's own library."""
    run = folder / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps(SETTINGS | (settings or {})))
    (run / "results.json").write_text(json.dumps({"curves": CURVES if curves is None else curves}))
    (folder / "model").mkdir()
    write_card(folder / "model", run, **arguments)
    return ModelCard.load(folder / "model" / "README.md")


def check_metadata(path: Path) -> dict:
    """What every card must say, whatever wrote it."""
    metadata = metadata_load(path)
    assert metadata == ModelCard.load(path).data.to_dict()  # nothing is lost between the two
    assert metadata["library_name"] in {"transformers", "peft"}
    assert metadata["pipeline_tag"] == "sentence-similarity"
    tags = {"magnet", "text-infilling", "text-generation"}  # that pipeline's; no other one's
    opens = {"sentence-transformers"} if metadata["library_name"] == "transformers" else set()
    assert set(metadata["tags"]) == tags | opens
    for example in metadata["widget"]:
        assert isinstance(example["source_sentence"], str)
        assert len(example["sentences"]) >= 2
        assert all(isinstance(sentence, str) for sentence in example["sentences"])
    assert ("base_model" in metadata) == ("base_model_relation" in metadata)
    assert metadata.get("base_model_relation", "finetune") in RELATIONS
    return metadata


def test_the_card_of_a_saved_folder(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "tiny")
    metadata = check_metadata(tmp_path / "tiny" / "README.md")
    assert metadata["library_name"] == "transformers" and "base_model" not in metadata


def test_the_card_of_a_run(tmp_path):
    card = written(tmp_path, license_="apache-2.0", name="me/mine")
    metadata = check_metadata(tmp_path / "model" / "README.md")
    assert metadata["base_model"] == SMOLLM2_ID
    assert metadata["base_model_relation"] == "finetune"
    assert metadata["license"] == "apache-2.0" and metadata["language"] == "en"
    assert metadata["datasets"] == ["Salesforce/wikitext"]  # and not the file
    results = {result.metric_name: result for result in card.data.eval_results}
    assert card.data.model_name == "mine"
    both = results["perplexity: missing spans, from both sides"]
    assert both.metric_value == 15.5 and both.dataset_split == "validation"
    pairs = results["accuracy: nearest sentence is the paraphrase"]
    assert pairs.task_type == "sentence-similarity" and pairs.dataset_name == "pairs.jsonl"
    assert 'AutoModel.from_pretrained("me/mine", trust_remote_code=True)' in card.text
    assert (
        "| perplexity: missing spans, from both sides | Salesforce/wikitext | 15.5 |" in card.text
    )


def test_the_card_of_an_adapter_with_an_evaluation(tmp_path):
    (tmp_path / "evaluated").mkdir()
    (tmp_path / "evaluated" / "sts.json").write_text(json.dumps(STS))
    settings = {"model": "meta-llama/Llama-3.2-1B", "text": ["a.txt"]}
    card = written(
        tmp_path, settings, {}, adapter=True, evaluation=tmp_path / "evaluated", language="de"
    )
    metadata = check_metadata(tmp_path / "model" / "README.md")
    assert metadata["library_name"] == "peft" and metadata["base_model_relation"] == "adapter"
    assert metadata["base_model"] == "meta-llama/Llama-3.2-1B" and metadata["language"] == "de"
    assert "license" not in metadata and "datasets" not in metadata
    assert [r.metric_value for r in card.data.eval_results] == [25.79, 63.81]
    assert {r.metric_type for r in card.data.eval_results} == {"spearmanr"}
    assert "spearmanr (default prompt), 95 % of 58.0 to 69.2" in card.text


def test_without_results_there_is_no_model_index(tmp_path):
    card = written(tmp_path, {"model": str(tmp_path)}, {"mntp": [[1, 2.0]]})
    metadata = check_metadata(tmp_path / "model" / "README.md")
    assert "model-index" not in metadata and card.data.eval_results is None
    assert not {"base_model", "language", "license"} & metadata.keys()
    assert str(tmp_path) not in card.content and "## Measured" not in card.text


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no results of sts, .* give the folder that"):
        written(tmp_path, evaluation=tmp_path)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_code_in_a_folder_is_the_package_s_byte_for_byte(tmp_path, architecture):
    make_model(architecture=architecture).save_pretrained(tmp_path / "m")
    code = {path.name: path.read_bytes() for path in (tmp_path / "m").glob("*.py")}
    assert {"modeling_magnet.py", "masking.py", "encoding.py", "infilling.py"} <= code.keys()
    assert ("architectures.py" in code) == (architecture != "llama")
    assert code == {name: (PACKAGE / name).read_bytes() for name in code}
    assert architecture in ARCHITECTURES


SHARE = """
import json, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoModel
from documents import run_blocks
from tiny import SENTENCES, make_model

page = run_blocks(Path(sys.argv[1]) / "docs/how-to/share-on-the-hub.md")  # pushes, loads the commit
first = page["commit"].oid
card = Path(hf_hub_download("me/magnet-mine", "README.md")).read_text()
HfApi().upload_file(path_or_fileobj=b"---\\nlicense: mit\\n---\\nmy own words", path_in_repo="README.md", repo_id="me/magnet-mine")
second = make_model(seed=1).push_to_hub("me/magnet-mine").oid

def load(**pins):
    return AutoModel.from_pretrained("me/magnet-mine", trust_remote_code=True, **pins).eval()

models = {
    "pinned": page["pinned"].eval(),
    "newest": load(),
    "old weights": load(revision=first),
    "old code": load(revision=second, code_revision=first),
}
print(json.dumps({
    "commits": [first, second],
    "card": card,
    "code": {name: type(model).__module__ for name, model in models.items()},
    "vectors": {name: model.encode(SENTENCES[0]).tolist() for name, model in models.items()},
}))
"""

ADAPTER = """
import json, sys, warnings
sys.path[:0] = sys.argv[1:3]
import torch
from peft import LoraConfig
from tiny import SENTENCES, make_model
from modeling_magnet import MagnetLlamaForCausalLM, load_magnet
from modeling_magnet.cli import app
from typer.testing import CliRunner

make_model().push_to_hub("me/base")
base = MagnetLlamaForCausalLM.from_pretrained("me/base").eval()
ids = torch.tensor([[5, 6, 7]])
logits = base(input_ids=ids).logits
torch.manual_seed(0)
adapted = MagnetLlamaForCausalLM.from_pretrained("me/base")
adapted.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
adapted.eval().config.magnet = {"default_prompt_name": "STS", "start_token_id": 5}
commit = adapted.push_to_hub("me/adapter").oid
loaded = load_magnet("me/adapter", revision=commit)
pushed = CliRunner().invoke(app, ["push", "me/adapter", "me/by-command", "--private"])
again = load_magnet("me/by-command")
adapted.peft_config["default"].base_model_name_or_path = sys.argv[2]
with warnings.catch_warnings(record=True) as said:
    adapted.push_to_hub("me/adapter")
with loaded.without_adapter():
    same = torch.equal(loaded(input_ids=ids).logits, logits)
print(json.dumps({"vectors": [model.encode(SENTENCES[0]).tolist() for model in (loaded, adapted, again)],
                  "url": pushed.output, "said": [str(warning.message) for warning in said],
                  "prompt": loaded.magnet_settings.default_prompt_name, "same": same}))
"""


def test_an_adapter_loads_from_the_hub_with_its_settings(tmp_path):
    """Pushed are adapter, settings and tokenizer; the base, which has other settings, is elsewhere."""
    with HubServer() as hub:
        done = subprocess.run(
            [sys.executable, "-c", ADAPTER, ROOT, ROOT / "tests"],
            env={**os.environ, **hub.environment(tmp_path / "cache")},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        result = json.loads(done.stdout.splitlines()[-1])
        assert hub.repositories["me/by-command"].private
        assert "adapter_model.safetensors" in hub.files("me/by-command")
        assert not {"model.safetensors"} & hub.files("me/by-command").keys()
    vectors = result["vectors"]
    np.testing.assert_allclose(vectors, [vectors[0]] * 3, atol=1e-6)
    assert "me/by-command/commit/" in result["url"]
    assert "which only this machine has: push the base" in result["said"][0]
    assert result["prompt"] == "STS" and result["same"]


def test_a_model_is_shared_and_pinned_as_the_page_says(tmp_path, tiny):
    """The page's own blocks, against a Hub on this machine."""
    tiny.save_pretrained(tmp_path / "outputs" / "quickstart" / "model")
    with HubServer() as hub:
        done = subprocess.run(
            [sys.executable, "-c", SHARE, ROOT, ROOT / "tests"],
            env={**os.environ, **hub.environment(tmp_path / "cache")},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        files = hub.files("me/magnet-mine")
        assert hub.repositories["me/magnet-mine"].private
    result = json.loads(done.stdout.splitlines()[-1])
    first, second = result["commits"]
    assert 'AutoModel.from_pretrained("me/magnet-mine", trust_remote_code=True)' in result["card"]
    assert files["README.md"].endswith(b"my own words")  # the second push left the card alone
    code = {name: data for name, data in files.items() if name.endswith(".py")}
    assert code == {name: (PACKAGE / name).read_bytes() for name in code} and len(code) >= 7

    old, new = tiny.encode(SENTENCES[0]), make_model(seed=1).encode(SENTENCES[0])
    expected = {"pinned": old, "newest": new, "old weights": old, "old code": new}
    for name, vector in expected.items():
        np.testing.assert_allclose(result["vectors"][name], vector, atol=1e-6)
    commits = {"pinned": first, "newest": second, "old weights": first, "old code": first}
    for name, commit in commits.items():
        assert f".{commit}." in result["code"][name], name
