"""`encode_query`, `encode_document`, `similarity` and `rank`, as sentence-transformers has them."""

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, util
from tiny import SENTENCES, make_model

OTHERS = ["The harbour was silent.", "It began to rain.", "Who built it?"]


@pytest.mark.parametrize("names", [(), ("query", "document"), ("query", "passage"), ("corpus",)])
def test_prompts_are_found_by_the_names_of_sentence_transformers(names, tmp_path):
    """The model and its folder opened there agree, whichever names the checkpoint has."""
    model = make_model()
    prompts = model.magnet_settings.prompts | {name: f"{name} of mine: " for name in names}
    model.config.magnet = model.magnet_settings.to_dict() | {"prompts": prompts}
    model.save_pretrained(tmp_path / "m")
    st = SentenceTransformer(str(tmp_path / "m"), device="cpu", trust_remote_code=True)
    for method, candidates in (
        ("encode_query", ["query"]),
        ("encode_document", ["document", "passage", "corpus"]),
    ):
        name = next((name for name in candidates if name in names), None)
        vectors = getattr(model, method)(SENTENCES)
        np.testing.assert_array_equal(vectors, model.encode(SENTENCES, prompt_name=name))
        np.testing.assert_allclose(getattr(st, method)(SENTENCES), vectors, atol=1e-5)
        stated = getattr(model, method)(SENTENCES, prompt="mine: ", batch_size=2)
        np.testing.assert_allclose(stated, model.encode(SENTENCES, prompt="mine: "), atol=1e-5)


def test_similarity_is_the_cosine_of_all_with_all(tiny):
    one, two = tiny.encode(SENTENCES), tiny.encode(OTHERS)
    expected = util.cos_sim(one, two)
    for vectors in (one, torch.tensor(one), list(torch.tensor(one)), one.tolist()):
        found = tiny.similarity(vectors, two)
        assert found.shape == (5, 3)
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(tiny.similarity(one[0], two), expected[:1])
    with pytest.raises(ValueError, match="have 48 and 16 dimensions: encode both with the same"):
        tiny.similarity(one, two[:, :16])


def test_texts_are_no_vectors(tiny):
    for texts in ("A cat.", ["A cat."]):
        with pytest.raises(TypeError, match="expected vectors: encode texts first"):
            tiny.similarity(texts, tiny.encode(["A dog."]))


def test_rank_sorts_documents_by_their_similarity_to_the_query(tiny):
    scores = util.cos_sim(tiny.encode_query(OTHERS[0]), tiny.encode_document(SENTENCES))[0]
    found = tiny.rank(OTHERS[0], SENTENCES, return_documents=True)
    order = scores.argsort(descending=True).tolist()
    assert [hit["corpus_id"] for hit in found] == order
    assert [hit["text"] for hit in found] == [SENTENCES[i] for i in order]
    assert [hit["score"] for hit in found] == pytest.approx(scores[order].tolist(), abs=1e-5)
    assert tiny.rank(OTHERS[0], tuple(SENTENCES), top_k=2, batch_size=1) == [
        {"corpus_id": i, "score": pytest.approx(scores[i].item(), abs=1e-5)} for i in order[:2]
    ]
    assert tiny.rank(OTHERS[0], []) == []


@pytest.mark.parametrize(
    ("query", "documents", "arguments", "message"),
    [
        ("a", "b", {}, "documents is one string: give a sequence"),
        ("a", ["b", 3], {}, "text 1 is int"),
        (["a"], ["b"], {}, "query is list"),
        ("a", ["b"], {"top_k": 1.5}, r"top_k is 1.5 \(float\)"),
    ],
)
def test_bad_arguments(tiny, query, documents, arguments, message):
    with pytest.raises(TypeError, match=message):
        tiny.rank(query, documents, **arguments)
