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

LOAD_AND_USE = """
import json, sys
import torch
from transformers import {auto}
model = {auto}.from_pretrained(sys.argv[1], trust_remote_code={trust}).eval()
result = dict(
    name=type(model).__name__,
    module=type(model).__module__,
    logits=model(input_ids=torch.tensor({ids})).logits[0, -1].tolist(),
)
if {trust}:
    result["vector"] = model.encode({sentence!r}).tolist()
    result["words"] = model.encode_words({sentence!r}).tolist()
    result["infill"] = model.infill("The old", " boats came home.", span_length=4)
print(json.dumps(result))
"""


@pytest.fixture
def folder(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="session")
def clean_python(tmp_path_factory):
    """Runs code where only torch, transformers and what they need is installed, offline."""
    farm = tmp_path_factory.mktemp("site")
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.lower().startswith(NOT_INSTALLED) and path.suffix != ".pth":
            (farm / path.name).symlink_to(path)

    def run(code: str, *arguments, **environment) -> dict:
        environment = {
            "HF_HUB_OFFLINE": "1", **os.environ, "PYTHONPATH": str(farm),
            "HF_HOME": str(farm.parent / "hf"), **environment,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, *map(str, arguments)],
            env=environment, cwd=farm.parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def used(auto: str, trust: bool) -> str:
    return LOAD_AND_USE.format(auto=auto, trust=trust, ids=IDS, sentence=SENTENCES[0])


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM"])
def test_a_clean_process_loads_it_with_trust(folder, tiny, clean_python, auto):
    result = clean_python(used(auto, True), folder)
    assert result["name"] == "MagnetLlamaForCausalLM"
    assert result["module"].startswith("transformers_modules")
    np.testing.assert_allclose(result["vector"], tiny.encode(SENTENCES[0]), atol=1e-6)
    np.testing.assert_allclose(result["words"], tiny.encode_words(SENTENCES[0]), atol=1e-6)
    assert result["infill"] == tiny.infill("The old", " boats came home.", span_length=4)


EVERY_FOLDER = """
import json, sys
import torch
from transformers import AutoModel, AutoModelForCausalLM
results = {{}}
for folder in sys.argv[1:]:
    magnet = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor({ids})
    results[folder] = dict(
        names=[type(model).__name__ for model in (magnet, plain)],
        module=type(magnet).__module__,
        vector=magnet.encode({sentence!r}).tolist(),
        infill=magnet.infill("The old", " boats came home.", span_length=4),
        written=[model.generate(ids, max_new_tokens=6).tolist() for model in (magnet, plain)],
    )
print(json.dumps(results))
"""


def test_a_clean_process_loads_every_architecture(tmp_path, clean_python):
    models = {str(tmp_path / n): make_model(architecture=n) for n in ARCHITECTURES if n != "llama"}
    for folder, model in models.items():
        model.save_pretrained(folder)
    code = EVERY_FOLDER.format(ids=IDS, sentence=SENTENCES[0])
    for folder, result in clean_python(code, *models).items():
        model = models[folder]
        assert result["names"] == [type(model).__name__, type(plain(model)).__name__]
        assert result["module"].startswith("transformers_modules")
        np.testing.assert_allclose(result["vector"], model.encode(SENTENCES[0]), atol=1e-5)
        assert result["infill"] == model.infill("The old", " boats came home.", span_length=4)
        written = model.generate(torch.tensor(IDS), max_new_tokens=6).tolist()
        assert result["written"] == [written, written]


def test_sentence_transformers_opens_every_architecture(tmp_path, any_tiny):
    any_tiny.save_pretrained(tmp_path / "m")
    model = SentenceTransformer(str(tmp_path / "m"), trust_remote_code=True)
    loaded = load_magnet(
        tmp_path / "m"
    )  # with Qwen2's tokenizer class, as AutoTokenizer chooses it
    np.testing.assert_allclose(model.encode(SENTENCES), loaded.encode(SENTENCES), atol=1e-5)
    assert model.max_seq_length == any_tiny.magnet_settings.max_length - 2


def test_without_trust_it_is_a_plain_llama(folder, tiny, clean_python):
    result = clean_python(used("AutoModelForCausalLM", False), folder)
    assert result["name"] == "LlamaForCausalLM"
    logits = tiny(input_ids=torch.tensor(IDS)).logits[0, -1].tolist()
    np.testing.assert_allclose(result["logits"], logits, atol=1e-6)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert set(config["auto_map"]) == {"AutoModel", "AutoModelForCausalLM"}


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


def test_saved_again_from_remote_code_it_still_loads(folder, tmp_path, tiny, clean_python):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model) is not MagnetLlamaForCausalLM
    model.save_pretrained(tmp_path / "again")
    result = clean_python(used("AutoModel", True), tmp_path / "again")
    np.testing.assert_allclose(result["vector"], tiny.encode(SENTENCES[0]), atol=1e-6)
    assert {p.name for p in (tmp_path / "again").iterdir()} == {p.name for p in folder.iterdir()}


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
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from tiny import make_model
model = make_model(seed=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # every write behind that fails
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
    done = subprocess.run(
        [sys.executable, "-c", FILL_THE_DISK, target, Path(__file__).parent],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
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


PUSH = """
import sys
sys.path.insert(0, sys.argv[1])
from tiny import make_model
print(make_model().push_to_hub("hf-test-user/tiny-magnet"))
print(make_model().save_pretrained(sys.argv[2], push_to_hub=True, repo_id="hf-test-user/second"))
"""


def test_push_to_hub_and_load_from_there(tmp_path, tiny, clean_python):
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "cache")
        subprocess.run(
            [sys.executable, "-c", PUSH, Path(__file__).parent, tmp_path / "local"],
            env={**os.environ, **environment}, check=True, capture_output=True,
        )  # fmt: skip
        files = hub.files("hf-test-user/tiny-magnet")
        assert files["README.md"].startswith(b"---\nlibrary_name: transformers")
        assert b"tiny-magnet" in files["README.md"]
        assert hub.files("hf-test-user/second")["modeling_magnet.py"] == files["modeling_magnet.py"]
        result = clean_python(used("AutoModel", True), "hf-test-user/tiny-magnet", **environment)
    np.testing.assert_allclose(result["vector"], tiny.encode(SENTENCES[0]), atol=1e-6)


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
