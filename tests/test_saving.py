"""Saving over what is there: the old model, the new one, or an error that says so."""

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import ROOT
from hub_server import HubServer
from killing import killed_at_each_step, stopped_at_each_step
from peft import LoraConfig
from processes import run, run_in
from sentence_transformers import SentenceTransformer
from tiny import SENTENCES, make_model
from tokenizers import normalizers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from modeling_magnet import MagnetLlamaForCausalLM, load_magnet
from modeling_magnet.atomic import CLOSED

IDS = torch.tensor([[5, 90, 7, 200, 11, 64]])
OTHERS = {
    "another shape": {"hidden_size": 32, "num_hidden_layers": 3},
    "the same shape, other settings": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10.0}
    },
}


def magnet(folder: Path) -> np.ndarray:
    return MagnetLlamaForCausalLM.from_pretrained(folder).encode(SENTENCES[0])


def stock(folder: Path) -> np.ndarray:
    return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits[0, -1].detach().numpy()


def in_sentence_transformers(folder: Path) -> np.ndarray:
    return SentenceTransformer(str(folder), trust_remote_code=True).encode(SENTENCES[0])


READERS = [magnet, stock]


def read(folder: Path, reader) -> np.ndarray | None:
    """What a reader gets; None for an error that says that there is no model."""
    try:
        return reader(folder)
    except OSError as error:
        assert "config.json' is not a valid JSON file" in str(error)
        return None


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    """All files except temporary ones."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def is_any_of(found: np.ndarray | None, models: list[np.ndarray]) -> int | None:
    """The number of the model that was found, -1 for none of them."""
    if found is None:
        return None
    same = [m.shape == found.shape and np.allclose(found, m, atol=1e-5) for m in models]
    return same.index(True) if any(same) else -1


@pytest.fixture(params=OTHERS)
def pair(request, tmp_path):
    """A model in shards, and another; folders of each."""
    old = make_model()
    new = make_model(seed=1, **OTHERS[request.param])
    new.config.magnet = {"start_token_id": 5, "default_prompt_name": "STS"}
    old.save_pretrained(tmp_path / "old" / "m", max_shard_size="100KB")
    new.save_pretrained(tmp_path / "new" / "m")
    return new, tmp_path / "old" / "m", tmp_path / "new" / "m"


def remake(folder: Path, old: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(old, folder)


def test_killed_at_any_step_it_is_the_old_model_or_the_new_or_an_error(pair, tmp_path):
    new, *folders = pair
    target = tmp_path / "m"
    expected = {reader: [reader(folder) for folder in folders] for reader in READERS}
    seen = {}
    kills = killed_at_each_step(
        lambda: new.save_pretrained(target), lambda: remake(target, folders[0])
    )
    for _ in kills:
        files = tuple(sorted((path.name, path.stat().st_size) for path in target.glob("[!.]*")))
        if files not in seen:
            seen[files] = tuple(is_any_of(read(target, r), expected[r]) for r in READERS)
        if seen[files] == (1, 1):  # what is left is to clean up
            break
    assert list(dict.fromkeys(seen.values())) == [(0, 0), (None, None), (1, 1)] and len(seen) > 20
    assert list(target.glob(".*"))
    new.save_pretrained(target)
    assert names(target) == names(folders[1])


@pytest.mark.parametrize("pair", [list(OTHERS)[1]], indirect=True)
def test_stopped_at_any_step_the_old_model_stays(pair, tmp_path, monkeypatch):
    new, *folders = pair
    target = tmp_path / "m"
    stops = stopped_at_each_step(
        lambda: new.save_pretrained(target), lambda: remake(target, folders[0]), monkeypatch
    )
    before, after = map(contents, folders)
    found = []
    for _ in stops:
        found.append(contents(target))
        if found[-1] == after:
            break
    assert found[:-1] == [before] * (len(found) - 1) and len(found) > 30 and found[-1] == after


def test_a_closed_folder_is_refused_by_every_reader(tmp_path, tiny):
    """What a kill leaves in the moment in which files are put in place."""
    tiny.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(CLOSED)
    for load in (
        load_magnet,
        lambda folder: AutoModel.from_pretrained(folder, trust_remote_code=True),
        lambda folder: SentenceTransformer(str(folder), trust_remote_code=True),
        AutoTokenizer.from_pretrained,
    ):
        with pytest.raises(OSError, match=r"config\.json' is not a valid JSON file"):
            load(tmp_path / "m")


def test_a_folder_without_a_config_is_refused(tmp_path, tiny):
    """transformers makes up the config of a Llama of 7 billion weights."""
    tiny.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "config.json").unlink()
    with pytest.raises(OSError, match=r"found no config\.json with a model_type in"):
        MagnetLlamaForCausalLM.from_pretrained(tmp_path / "m")


def test_a_variant_is_saved_beside_the_others(tmp_path, tiny):
    target = tmp_path / "m"
    ema = make_model(seed=1)
    tiny.save_pretrained(target)
    ema.save_pretrained(target, variant="ema", max_shard_size="100KB")
    sharded = names(target)
    assert "model.safetensors" in sharded and "model.safetensors.index.ema.json" in sharded
    for loaded, model in (({}, tiny), ({"variant": "ema"}, ema)):
        found = load_magnet(target, **loaded).encode(SENTENCES[0])
        np.testing.assert_allclose(found, model.encode(SENTENCES[0]), atol=1e-6)
    ema.save_pretrained(target, variant="ema")
    assert {n for n in sharded - names(target)} == {
        n for n in sharded if n.startswith("model.ema-")
    } | {"model.safetensors.index.ema.json"}
    tiny.save_pretrained(target, max_shard_size="100KB")
    assert "model.ema.safetensors" in names(target) and "model.safetensors" not in names(target)


def adapted(folder: Path):
    """The model of a folder with an adapter, loaded as users do."""
    model = load_magnet(folder)
    torch.manual_seed(0)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    return model.eval()


def test_an_adapter_is_saved_beside_its_base(tmp_path, tiny):
    target = tmp_path / "m"
    tiny.save_pretrained(target)
    tiny.save_pretrained(tmp_path / "base")
    weights = (target / "model.safetensors").read_bytes()
    model = adapted(target)
    model.save_pretrained(target)
    assert (target / "model.safetensors").read_bytes() == weights
    assert names(target) >= {"adapter_config.json", "adapter_model.safetensors"}
    expected = model(IDS).logits[0, -1].detach().numpy()
    np.testing.assert_allclose(stock(target), expected, atol=1e-6)
    np.testing.assert_allclose(magnet(target), model.encode(SENTENCES[0]), atol=1e-6)
    assert abs(expected - stock(tmp_path / "base")).max() > 0.01


def test_whole_weights_take_an_adapter_s_place(tmp_path, tiny):
    """transformers would load the adapter onto the new weights."""
    tiny.save_pretrained(tmp_path / "base")
    adapted(tmp_path / "base").save_pretrained(tmp_path / "m")
    new = make_model(seed=1)
    new.save_pretrained(tmp_path / "m")
    assert not [name for name in names(tmp_path / "m") if name.startswith("adapter_")]
    found = load_magnet(tmp_path / "m").encode(SENTENCES[0])
    np.testing.assert_allclose(found, new.encode(SENTENCES[0]), atol=1e-6)


def test_a_chat_template_goes_with_its_model(tmp_path, tiny):
    target = tmp_path / "m"
    tiny.save_pretrained(target)
    assert AutoTokenizer.from_pretrained(target).chat_template
    (target / "special_tokens_map.json").write_text('{"eos_token": "<pad>"}')  # of older versions
    new = make_model(seed=1)
    new.tokenizer.chat_template = None
    new.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.chat_template is None and tokenizer.eos_token == "</s>"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no other file system")
@pytest.mark.parametrize("empty", [True, False])
def test_a_link_to_a_folder_on_another_file_system(tmp_path, tiny, empty):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (tmp_path / "m").symlink_to(other)
        if not empty:
            make_model(seed=1).save_pretrained(other, max_shard_size="100KB")
        tiny.save_pretrained(tmp_path / "m")
        assert (tmp_path / "m").is_symlink() and names(tmp_path) == {"m"}
        assert not [name for name in os.listdir(other) if name.startswith((".", "model-"))]
        found = load_magnet(tmp_path / "m").encode(SENTENCES[0])
    np.testing.assert_allclose(found, tiny.encode(SENTENCES[0]), atol=1e-6)


def test_the_working_directory(tmp_path, tiny, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    for _ in range(2):
        tiny.save_pretrained(".")
    assert "model.safetensors" in names(tmp_path / "mine") and names(tmp_path) == {"mine"}
    assert "# mine" in Path("README.md").read_text()


READ_ADAPTER = """
import json, sys
from peft import AutoPeftModelForCausalLM
from sentence_transformers import SentenceTransformer
from tiny import SENTENCES
from transformers import AutoModel
from modeling_magnet import load_magnet
folder = sys.argv[1]
AutoPeftModelForCausalLM.from_pretrained(folder)
models = (
    load_magnet(folder),
    AutoModel.from_pretrained(folder, trust_remote_code=True),
    SentenceTransformer(folder, trust_remote_code=True),
)
print(json.dumps([model.encode(SENTENCES[0]).tolist() for model in models]))
"""


def test_an_adapter_is_read_with_the_settings_it_was_saved_with(tmp_path, tiny):
    """Its base has others, and another tokenizer; saved again from what was read, it is the same."""
    tiny.save_pretrained(tmp_path / "base")
    model = adapted(tmp_path / "base")
    model.config.magnet = {"start_token_id": 5, "default_prompt_name": "STS"}
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    model.save_pretrained(tmp_path / "adapter")
    load_magnet(tmp_path / "adapter").save_pretrained(tmp_path / "again")
    assert names(tmp_path / "again") == names(tmp_path / "adapter")
    for folder in ("adapter", "again"):
        done = run("-c", READ_ADAPTER, tmp_path / folder)
        assert done.returncode == 0, done.stderr[-3000:]
        for vector in json.loads(done.stdout.splitlines()[-1]):
            np.testing.assert_allclose(vector, model.encode(SENTENCES[0]), atol=1e-5)


def test_a_model_without_a_tokenizer_is_saved_with_a_warning(tmp_path, tiny):
    model = MagnetLlamaForCausalLM(tiny.config).eval()
    model.config.magnet = {"start_token_id": 5}
    with pytest.warns(UserWarning, match=r"has no tokenizer: set model\.tokenizer .* Saved we"):
        model.save_pretrained(tmp_path / "m")
    needs_one = {"tokenizer.json", "tokenizer_config.json", "modules.json", "README.md"}
    assert not names(tmp_path / "m") & needs_one
    loaded = AutoModel.from_pretrained(tmp_path / "m", trust_remote_code=True)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert loaded.config.magnet == {"start_token_id": 5}
    with pytest.raises(ValueError, match="no tokenizer in .* could be loaded"):
        loaded.encode("a")
    loaded.tokenizer = tiny.tokenizer
    loaded.save_pretrained(tmp_path / "m")
    assert names(tmp_path / "m") >= needs_one
    assert magnet(tmp_path / "m").shape == (48,)


PUSH = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from peft import LoraConfig
from tiny import make_model
target = Path("folder")
old, new = make_model(), make_model(seed=1)
old.save_pretrained(target, push_to_hub=True, repo_id="me/m")
old.save_pretrained("ema", variant="ema", push_to_hub=True, repo_id="me/m")
(target / "secret.txt").write_text("mine")
(target / "checkpoint-1").mkdir()
(target / "checkpoint-1" / "optimizer.pt").write_text("mine")
new.tokenizer.chat_template = None
new.save_pretrained(target, max_shard_size="100KB", push_to_hub=True, repo_id="me/m")
"""


def test_what_is_pushed_replaces_what_would_be_read_with_it(tmp_path):
    """The Hub's `model.safetensors` of before would be read in place of the new shards."""
    with HubServer() as hub:
        done = subprocess.run(
            [sys.executable, "-c", PUSH, ROOT, ROOT / "tests"],
            env={**os.environ, **hub.environment(tmp_path / "cache")},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        files = hub.files("me/m").keys()
    weights = {name for name in files if name.startswith("model")} - {"modeling_magnet.py"}
    assert "model.safetensors" not in weights and "model.safetensors.index.json" in weights
    assert "model.ema.safetensors" in weights
    assert not {"secret.txt", "checkpoint-1/optimizer.pt", "chat_template.jinja"} & files
    assert {"tokenizer.json", "modules.json", "README.md"} <= files


IN_EACH_PROCESS = """
import sys
import torch.distributed
from modeling_magnet import MagnetLlamaForCausalLM
model = MagnetLlamaForCausalLM.from_pretrained(sys.argv[1], tp_plan="auto")
model.save_pretrained(sys.argv[2])
torch.distributed.destroy_process_group()
"""


def test_weights_in_parts_are_gathered_from_every_process(tmp_path, tiny):
    """Called in each, as transformers asks; the first alone writes."""
    tiny.save_pretrained(tmp_path / "m")
    run_in(2, "-c", IN_EACH_PROCESS, tmp_path / "m", tmp_path / "again")
    assert contents(tmp_path / "again").keys() == contents(tmp_path / "m").keys()
    np.testing.assert_allclose(magnet(tmp_path / "again"), tiny.encode(SENTENCES[0]), atol=1e-6)
