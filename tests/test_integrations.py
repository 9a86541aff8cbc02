"""Other people's packages on our folders give the vectors of `encode` (docs/integrations.md)."""

import re
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny import SENTENCES, make_model
from typer.testing import CliRunner

from modeling_magnet import MagnetMixin
from modeling_magnet.cli import app, exporting

PAIRS = {
    "sentence1": SENTENCES[:4],
    "sentence2": ["The harbour was silent.", "A dog runs.", "It began to rain.", "Who built it?"],
    "score": [4.5, 1.0, 2.0, 3.5],
}


@pytest.fixture(scope="module")
def model() -> MagnetMixin:
    return make_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("integrations") / "magnet"
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """What `magnet export --to encoder` writes: no remote code."""
    path = tmp_path_factory.mktemp("integrations") / "encoder"
    exporting.export(make_model(), "encoder", path)
    return str(path)


@pytest.fixture(scope="module", params=["magnet", "encoder"])
def sentence_transformer(request, folder, encoder):
    if request.param == "encoder":
        return SentenceTransformer(encoder, device="cpu")
    return SentenceTransformer(folder, device="cpu", trust_remote_code=True)


def assert_same(found, expected):
    print(f"largest difference {abs(np.asarray(found) - expected).max():.1e}")
    np.testing.assert_allclose(np.asarray(found), expected, atol=1e-5, rtol=0)


def test_sentence_transformers_prompts(sentence_transformer, model):
    st = sentence_transformer
    assert st.default_prompt_name == "sentence"
    assert_same(st.encode(SENTENCES), model.encode(SENTENCES))
    assert_same(st.encode(SENTENCES[0]), model.encode(SENTENCES[0]))
    for name in model.magnet_settings.prompts:
        expected = model.encode(SENTENCES, prompt_name=name)
        assert_same(st.encode(SENTENCES, prompt_name=name), expected)
    assert_same(st.encode(SENTENCES, prompt=""), model.encode(SENTENCES, prompt=""))


def test_sentence_transformers_queries_and_documents_have_the_default_prompt(
    sentence_transformer, model
):
    expected = model.encode(SENTENCES)
    assert_same(sentence_transformer.encode_query(SENTENCES), expected)
    assert_same(sentence_transformer.encode_document(SENTENCES), expected)


def test_sentence_transformers_arguments(sentence_transformer, model):
    for arguments in (
        {"truncate_dim": 16},
        {"normalize_embeddings": True},
        {"truncate_dim": 16, "normalize_embeddings": True},
        {"batch_size": 2},
    ):
        found = sentence_transformer.encode(SENTENCES, **arguments)
        assert_same(found, model.encode(SENTENCES, **arguments))
    tensor = sentence_transformer.encode(SENTENCES, convert_to_tensor=True)
    assert_same(tensor, model.encode(SENTENCES))
    long = "word " * 300
    with pytest.warns(UserWarning, match="1 of 1 texts were cut"):
        expected = model.encode(long, truncation=True)
    assert_same(sentence_transformer.encode(long), expected)


def test_sentence_transformers_in_several_processes(folder, model):
    """A class of remote code goes through pickle to each of them."""
    st = SentenceTransformer(folder, device="cpu", trust_remote_code=True)
    assert type(st[0].auto_model).__module__.startswith("transformers_modules.")
    found = st.encode(SENTENCES, device=["cpu", "cpu"], chunk_size=2)
    assert_same(found, model.encode(SENTENCES))


@pytest.mark.parametrize("exported", [False, True])
def test_a_tokenizer_without_a_padding_token(tmp_path, exported):
    """As Llama's: batches are padded all the same."""
    model = make_model()
    model.tokenizer.pad_token = None
    if exported:
        exporting.export(model, "encoder", tmp_path / "m")
    else:
        model.save_pretrained(tmp_path / "m")
    st = SentenceTransformer(str(tmp_path / "m"), device="cpu", trust_remote_code=not exported)
    assert_same(st.encode(SENTENCES), make_model().encode(SENTENCES))


def test_langchain(folder, model):
    package = pytest.importorskip("langchain_huggingface", reason="see docs/integrations.md")
    embeddings = package.HuggingFaceEmbeddings(
        model_name=folder, model_kwargs={"device": "cpu", "trust_remote_code": True}
    )
    assert_same(embeddings.embed_documents(SENTENCES), model.encode(SENTENCES))
    assert_same(embeddings.embed_query(SENTENCES[0]), model.encode(SENTENCES[0]))
    named = package.HuggingFaceEmbeddings(
        model_name=folder,
        model_kwargs={"device": "cpu", "trust_remote_code": True},
        encode_kwargs={"normalize_embeddings": True},
        query_encode_kwargs={"prompt_name": "STS"},
    )
    expected = model.encode(SENTENCES, normalize_embeddings=True)
    assert_same(named.embed_documents(SENTENCES), expected)
    expected = model.encode(SENTENCES[0], prompt_name="STS")
    assert_same(named.embed_query(SENTENCES[0]), expected)


def test_llama_index(folder, encoder, model):
    """It replaces a folder's prompts by its own, which are empty unless given."""
    package = pytest.importorskip(
        "llama_index.embeddings.huggingface", reason="not installed: the extra integrations"
    )
    prompts = model.magnet_settings.prompts
    instructions = {
        "query_instruction": prompts["sentence"],
        "text_instruction": prompts["sentence"],
    }
    for place, trust in ((folder, True), (encoder, False)):
        embedding = package.HuggingFaceEmbedding(
            place, device="cpu", trust_remote_code=trust, **instructions
        )
        expected = model.encode(SENTENCES, normalize_embeddings=True)
        assert_same(embedding.get_text_embedding_batch(SENTENCES), expected)
        assert_same(embedding.get_query_embedding(SENTENCES[0]), expected[0])
    bare = package.HuggingFaceEmbedding(
        folder, device="cpu", trust_remote_code=True, normalize=False
    )
    assert_same(bare.get_text_embedding(SENTENCES[0]), model.encode(SENTENCES[0], prompt=""))


def test_mteb(folder, model):
    """Its loader takes the prompt that is named like the kind of task."""
    pytest.importorskip("mteb", reason="not installed: the extra eval, Python 3.11")
    from datasets import Dataset
    from mteb.abstasks import AbsTaskSTS
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import SentenceTransformerEncoderWrapper
    from scipy.stats import spearmanr

    class Pairs(AbsTaskSTS):
        metadata = TaskMetadata(
            name="Pairs", description="Four invented pairs.", type="STS",
            main_score="cosine_spearman", eval_langs=["eng-Latn"], eval_splits=["test"],
            dataset={"path": "a/file", "revision": "none"},
        )  # fmt: skip

    task = Pairs()
    task.dataset, task.data_loaded = {"test": Dataset.from_dict(PAIRS)}, True
    loaded = SentenceTransformerEncoderWrapper(folder, device="cpu", trust_remote_code=True)
    found = task.evaluate(loaded, "test", encode_kwargs={})["default"]["cosine_spearman"]
    one, two = (
        model.encode(PAIRS[name], prompt_name="STS", normalize_embeddings=True)
        for name in ("sentence1", "sentence2")
    )
    cosines = (one * two).sum(axis=1)
    print("score", found)
    assert found == pytest.approx(spearmanr(cosines, PAIRS["score"]).statistic)
    assert_same(loaded.model.encode(SENTENCES), model.encode(SENTENCES))


PAGE = (Path(__file__).parents[1] / "docs" / "integrations.md").read_text(encoding="utf-8")
SECTIONS = {
    title: text for title, text in re.findall(r"^## (.+)\n([\s\S]*?)(?=^## |\Z)", PAGE, re.M)
}


@pytest.mark.parametrize("title", SECTIONS)
def test_the_page(title, folder, model, tmp_path, monkeypatch):
    """Its blocks run: `magnet` commands, then Python."""
    blocks = re.findall(r"```(\w+)\n([\s\S]*?)```", SECTIONS[title])
    code = "\n".join(text for language, text in blocks if language == "python")
    for package in re.findall(r"^(?:import|from) (\w+)", code, re.M):
        pytest.importorskip(package, reason="see docs/integrations.md")
    (tmp_path / "outputs" / "quickstart").mkdir(parents=True)
    (tmp_path / "outputs" / "quickstart" / "model").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"^magnet (.+)$", "\n".join(text for _, text in blocks), re.M):
        result = CliRunner().invoke(app, command.split())
        assert result.exit_code == 0, result.output
    left: dict = {}
    exec(code, left)
    texts = ["A cat sleeps.", "A dog runs."]
    if "documents" in left:  # normalized
        assert_same(left["documents"], model.encode(texts, normalize_embeddings=True))
        expected = model.encode("Who sleeps?", normalize_embeddings=True)
        assert_same(left["query"], expected)
    elif "vectors" in left:
        assert_same(left["vectors"], model.encode(texts))
    elif "embeddings" in left:  # whose cache is in float16
        expected = model.encode(texts, normalize_embeddings=True)
        np.testing.assert_allclose(left["embeddings"], expected, atol=1e-3)
    elif "encoder" in left:
        assert_same(left["encoder"].model.encode(texts), model.encode(texts))
    else:
        assert "text" in left or (tmp_path / "plain-llama" / "config.json").exists()
