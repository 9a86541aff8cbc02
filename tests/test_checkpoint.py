"""The folder: complete, loadable anywhere, never half-written."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from peft import AutoPeftModelForCausalLM, PeftModel
from processes import run
from sentence_transformers import SentenceTransformer
from test_model import add_lora
from tiny import ARCHITECTURES, SENTENCES, make_model, plain
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM, load_magnet
from modeling_magnet.settings import POOLINGS

IDS = [[5, 90, 7, 200, 11, 64]]
NOT_INSTALLED = (
    "modeling_magnet", "__editable__", "peft", "sentence_transformers", "accelerate", "datasets",
    "evaluate", "sklearn", "scipy", "pytest", "hypothesis",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def clean_python(site: Path, code: str, *arguments) -> dict:
    """Run code where only torch, transformers and what they need is installed, offline."""
    site.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.lower().startswith(NOT_INSTALLED) and path.suffix != ".pth":
            (site / path.name).symlink_to(path)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(site.parent / "hf"), "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, *map(str, arguments)],
        env=os.environ | offline, cwd=site.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


EVERY_FOLDER = """
import json, sys
import torch
from transformers import AutoModel, AutoModelForCausalLM
results = {{}}
for folder in sys.argv[1:]:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    magnet, causal = (
        auto.from_pretrained(folder, trust_remote_code=True)
        for auto in (AutoModel, AutoModelForCausalLM)
    )
    # 5.5's Gemma 2 leaves out a part of its attention in sdpa, its default there
    plain.set_attn_implementation(magnet.config._attn_implementation)
    models = [model.eval() for model in (magnet, causal, plain)]
    ids = torch.tensor({ids})
    results[folder] = dict(
        names=[type(model).__name__ for model in models],
        modules=[type(model).__module__ for model in models],
        logits=[model(input_ids=ids).logits[0, -1].tolist() for model in models],
        written=[model.generate(ids, max_new_tokens=6).tolist() for model in models],
        vectors=[model.encode({sentence!r}).tolist() for model in models[:2]],
        words=[model.encode_words({sentence!r}).tolist() for model in models[:2]],
        infilled=[model.infill(*{around}, span_length=4) for model in models[:2]],
    )
print(json.dumps(results))
"""


def test_a_clean_process_loads_every_architecture(tmp_path):
    """With trust by either class, without it as a stock model; and again what remote code saved."""
    models = {tmp_path / name: make_model(architecture=name) for name in ARCHITECTURES}
    for folder, model in models.items():
        model.save_pretrained(folder)
    remote = AutoModel.from_pretrained(tmp_path / "llama", trust_remote_code=True)
    assert type(remote) is not MagnetLlamaForCausalLM
    remote.save_pretrained(tmp_path / "again")
    first, second = ({p.name for p in (tmp_path / n).iterdir()} for n in ("llama", "again"))
    assert first == second
    models[tmp_path / "again"] = models[tmp_path / "llama"]

    around = ("The old", " boats came home.")
    code = EVERY_FOLDER.format(ids=IDS, sentence=SENTENCES[0], around=around)
    results = clean_python(tmp_path / "site", code, *models)
    for folder, model in models.items():
        result, ids = results[str(folder)], torch.tensor(IDS)
        name, stock = type(model).__name__, type(plain(model)).__name__
        assert result["names"] == [name, name, stock]
        remote = [module.startswith("transformers_modules") for module in result["modules"]]
        assert remote == [True, True, False]
        logits = model(input_ids=ids).logits[0, -1].tolist()
        np.testing.assert_allclose(result["logits"], [logits] * 3, atol=1e-6)
        assert result["written"] == [model.generate(ids, max_new_tokens=6).tolist()] * 3
        vector, words = model.encode(SENTENCES[0]), model.encode_words(SENTENCES[0])
        np.testing.assert_allclose(result["vectors"], [vector] * 2, atol=1e-6)
        np.testing.assert_allclose(result["words"], [words] * 2, atol=1e-6)
        assert result["infilled"] == [model.infill(*around, span_length=4)] * 2


def test_a_config_names_the_stock_model_and_the_code_for_magnet(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert set(config["auto_map"]) == {"AutoModel", "AutoModelForCausalLM"}


def test_sentence_transformers_opens_every_architecture(tmp_path, any_tiny):
    any_tiny.save_pretrained(tmp_path / "m")
    model = SentenceTransformer(str(tmp_path / "m"), trust_remote_code=True)
    loaded = load_magnet(
        tmp_path / "m"
    )  # with Qwen2's tokenizer class, as AutoTokenizer chooses it
    np.testing.assert_allclose(model.encode(SENTENCES), loaded.encode(SENTENCES), atol=1e-5)
    assert model.max_seq_length == any_tiny.magnet_settings.max_length - 2


def test_the_folder_is_complete(folder):
    package = Path(sys.modules["modeling_magnet"].__file__).parent
    code = {"atomic.py", "checkpoint.py", "encoding.py", "infilling.py", "masking.py", "modeling_magnet.py",
            "saving.py", "settings.py"}  # fmt: skip
    names = {path.name for path in folder.iterdir()}
    assert names >= code | {"README.md", "config.json", "generation_config.json", "model.safetensors",
                            "modules.json", "sentence_bert_config.json", "tokenizer.json",
                            "config_sentence_transformers.json"}  # fmt: skip
    for name in code:
        assert (folder / name).read_bytes() == (package / name).read_bytes()
    assert not [name for name in names if name.endswith((".bin", ".pt", ".partial"))]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("start_in_encode", [True, False])
def test_sentence_transformers_gives_the_same_vectors(tmp_path, tiny, start_in_encode, pooling):
    """Also where the tokenizer has a chat template, which sentence-transformers would apply."""
    assert tiny.tokenizer.chat_template
    tiny.config.magnet = {"start_in_encode": start_in_encode, "pooling": pooling}
    tiny.save_pretrained(tmp_path / "m")
    model = SentenceTransformer(str(tmp_path / "m"), trust_remote_code=True)
    np.testing.assert_allclose(model.encode(SENTENCES), tiny.encode(SENTENCES), atol=1e-6)
    np.testing.assert_allclose(
        model.encode(SENTENCES, prompt_name="STS"),
        tiny.encode(SENTENCES, prompt_name="STS"),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        model.encode(SENTENCES, prompt="x ", normalize_embeddings=True),
        tiny.encode(SENTENCES, prompt="x ", normalize_embeddings=True),
        atol=1e-6,
    )
    assert model.get_embedding_dimension() == 48
    assert model.max_seq_length == (254 if start_in_encode else 255)


def test_sentence_transformers_on_a_tokenizer_that_adds_a_start_token(tmp_path, tiny):
    """Llama's own tokenizers begin every text with <s>; it must not come twice."""
    from tokenizers.processors import TemplateProcessing

    tiny.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    assert tiny.tokenizer("a")["input_ids"][0] == 0
    tiny.save_pretrained(tmp_path / "m")
    model = SentenceTransformer(str(tmp_path / "m"), trust_remote_code=True)
    np.testing.assert_allclose(model.encode(SENTENCES), tiny.encode(SENTENCES), atol=1e-6)
    np.testing.assert_allclose(tiny.encode(SENTENCES), make_model().encode(SENTENCES), atol=1e-6)


def test_the_real_model_in_sentence_transformers(tmp_path, base_model):
    assert base_model.tokenizer.chat_template
    base_model.save_pretrained(tmp_path / "m")
    model = SentenceTransformer(str(tmp_path / "m"), trust_remote_code=True)
    np.testing.assert_allclose(model.encode(SENTENCES), base_model.encode(SENTENCES), atol=1e-4)


def test_an_adapter_folder_on_a_saved_base(folder, tmp_path):
    base = MagnetLlamaForCausalLM.from_pretrained(folder)
    model = add_lora(base)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
    assert isinstance(loaded, PeftModel)
    np.testing.assert_allclose(loaded.encode(SENTENCES), model.encode(SENTENCES), atol=1e-6)


def test_settings_and_dtype_survive(tmp_path, tiny):
    tiny.config.magnet = {"start_token_id": 5, "max_length": 100, "default_prompt_name": "STS"}
    tiny.to(torch.bfloat16).save_pretrained(tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", trust_remote_code=True)
    assert model.dtype == torch.bfloat16
    assert model.magnet_settings.to_dict() == tiny.magnet_settings.to_dict()
    assert model.magnet_settings.start_token_id == 5


def test_an_older_folder_keeps_its_other_files_but_no_old_shards(tmp_path, tiny):
    target = tmp_path / "m"
    tiny.save_pretrained(target, max_shard_size="100KB")
    assert len(list(target.glob("model-*.safetensors"))) > 1
    (target / "notes.txt").write_text("mine")
    tiny.save_pretrained(target)
    assert [p.name for p in target.glob("*.safetensors*")] == ["model.safetensors"]
    assert (target / "notes.txt").read_text() == "mine"
    assert MagnetLlamaForCausalLM.from_pretrained(target).encode("a").shape == (48,)


FILL_THE_DISK = """
import sys
from tiny import make_model
model = make_model(seed=1)
try:
    model.save_pretrained(sys.argv[1])
except Exception as error:
    print("failed:", type(error).__name__)
"""


@pytest.mark.parametrize("existing", [True, False])
def test_a_full_disk_leaves_what_was_there(tmp_path, tiny, existing):
    target = tmp_path / "m"
    if existing:
        tiny.save_pretrained(target)
    before = {p.name: p.read_bytes() for p in target.iterdir()} if existing else None
    done = run("-c", FILL_THE_DISK, target, largest=50_000)
    assert done.stdout.startswith("failed:"), done.stderr[-2000:]
    assert [p.name for p in tmp_path.iterdir()] == (["m"] if existing else [])
    if existing:
        assert {p.name: p.read_bytes() for p in target.iterdir()} == before


def test_a_file_in_the_way(tmp_path, tiny):
    (tmp_path / "m").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("m", "link"):
        with pytest.raises(FileExistsError, match="is a file or a link to nothing: give a folder"):
            tiny.save_pretrained(tmp_path / name)


PUSH_AND_LOAD = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tiny import SENTENCES, make_model
from transformers import AutoModel
make_model().push_to_hub("hf-test-user/tiny-magnet")
make_model().save_pretrained(sys.argv[2], push_to_hub=True, repo_id="hf-test-user/second")
model = AutoModel.from_pretrained("hf-test-user/tiny-magnet", trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules")
print(json.dumps(model.encode(SENTENCES[0]).tolist()))
"""


def test_push_to_hub_and_load_from_there(tmp_path, tiny):
    with HubServer() as hub:
        done = subprocess.run(
            [sys.executable, "-c", PUSH_AND_LOAD, Path(__file__).parent, tmp_path / "local"],
            env={**os.environ, **hub.environment(tmp_path / "cache")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        files = hub.files("hf-test-user/tiny-magnet")
        assert files["README.md"].startswith(b"---\nlibrary_name: transformers")
        assert b"tiny-magnet" in files["README.md"]
        assert hub.files("hf-test-user/second")["modeling_magnet.py"] == files["modeling_magnet.py"]
    vector = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(vector, tiny.encode(SENTENCES[0]), atol=1e-6)


def test_an_unknown_hub_argument_is_refused(tiny):
    with pytest.raises(TypeError, match="nonsense"):
        tiny.push_to_hub("user/name", nonsense=1)


def test_plain_llama_reads_the_same_weights(folder, tiny):
    base = LlamaForCausalLM.from_pretrained(folder)
    ids = torch.tensor(IDS)
    assert torch.equal(base(input_ids=ids).logits, tiny(input_ids=ids).logits)


@pytest.mark.parametrize("place", ["/no/such/folder", "outputs/no/folder", "no-folder/"])
def test_a_folder_that_does_not_exist_is_called_so(place):
    """Not a bad id of a repository, which nobody meant."""
    for load in (load_magnet, MagnetLlamaForCausalLM.from_pretrained):
        with pytest.raises(FileNotFoundError, match=f"'{place}' is neither a folder nor a Hub id"):
            load(place)


def test_a_folder_that_reads_like_an_id_is_not_laid_on_the_network_alone():
    for load in (load_magnet, MagnetLlamaForCausalLM.from_pretrained):
        with pytest.raises(OSError, match="the folder 'outputs/nope' does not exist, and no model"):
            load("outputs/nope")


def test_a_file_in_place_of_a_folder_is_called_so(tmp_path, tiny):
    tiny.save_pretrained(tmp_path)
    with pytest.raises(NotADirectoryError, match="config.json is a file: give the folder"):
        load_magnet(tmp_path / "config.json")
