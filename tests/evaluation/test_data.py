"""Where data are found, and what stands for them on the Hub."""

import datasets
import pytest

from evaluation.common.texts import read_conll
from evaluation.data import CHOICES, CLUSTERING, STS, Data, conll_text, fingerprint


def test_files_of_a_folder(data, tmp_path):
    found = Data(data, tmp_path)
    assert [path.removeprefix(f"{data}/") for path in found.sources("words")] == [
        "conll2003/eng.train",
        "conll2003/eng.testa",
    ]
    assert found.sources("sts") == [str(data / "sts" / "invented.tsv")]
    assert found.sources("stories") == [str(data / "rocstories" / "dev.tsv")]
    with pytest.raises(FileNotFoundError, match="has no sts/\\*.tsv: add it, or choose other"):
        Data(tmp_path, tmp_path).sources("sts")
    with pytest.raises(FileNotFoundError, match="nowhere, which is not a folder"):
        Data(tmp_path / "nowhere", tmp_path)


def test_test_files_go_before_development_files(tmp_path):
    folder = tmp_path / "wikitext-103"
    folder.mkdir()
    for name in ("wiki.valid.tokens", "wiki.test.tokens"):
        (folder / name).write_text("text\n")
        assert Data(tmp_path, tmp_path).sources("text") == [str(folder / name)]


def test_names_on_the_hub(tmp_path):
    hub = Data(None, tmp_path)
    assert hub.sources("sts") == list(STS) and len(STS) == 7  # Table 2
    assert hub.sources("clustering") == list(CLUSTERING)
    assert hub.sources("choices") == list(CHOICES)
    with pytest.raises(FileNotFoundError, match="ROC Stories are not on the Hub"):
        hub.sources("stories")


def test_a_set_of_the_hub_becomes_lines_of_conll(tmp_path):
    def tags(names):
        return datasets.Sequence(datasets.ClassLabel(names=names))

    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "pos_tags": tags(["NN", "VBD"]),
            "chunk_tags": tags(["O", "B-NP", "I-NP"]),
            "ner_tags": tags(["O", "B-LOC"]),
        }
    )
    rows = {
        "tokens": [["The", "harbour"], ["Ida"]],
        "pos_tags": [[0, 1], [0]],
        "chunk_tags": [[1, 2], [1]],
        "ner_tags": [[0, 1], [0]],
    }
    path = tmp_path / "eng.train"
    path.write_text(conll_text(datasets.Dataset.from_dict(rows, features=features)))
    first, second = read_conll(path)
    assert first.words == ["The", "harbour"] and second.words == ["Ida"]
    assert first.tags == {"pos": ["NN", "VBD"], "chunk": ["B-NP", "I-NP"], "ner": ["O", "B-LOC"]}


def test_a_fingerprint_is_of_the_contents(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("one")
    first = fingerprint([str(path)])
    path.write_text("two")
    assert fingerprint([str(path)]) != first
    path.write_text("one")
    assert fingerprint([str(path)]) == first != fingerprint(["STS12"])
