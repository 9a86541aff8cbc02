"""Similarity and speed against layers and widths."""

import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from tiny import SENTENCES, make_model

from evaluation.studies import matryoshka

SCORES = [5.0, 1.0, 2.5, 0.5, 4.0]
OTHERS = [SENTENCES[0].lower(), *SENTENCES[2:], "A cat."]


@pytest.fixture
def file(tmp_path):
    rows = [f"{s}\t{a}\t{b}" for s, a, b in zip(SCORES, SENTENCES, OTHERS)]
    (tmp_path / "sts.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *rows]) + "\n")
    return tmp_path / "sts.tsv"


def test_each_cell_is_the_correlation_of_encode_s_cosines(file, tmp_path, capsys):
    models = {"before": make_model(), "after": make_model(seed=1)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    named = [f"{name}={tmp_path / name}" for name in models]
    sizes = ["--layers", "1", "2", "--dims", "8", "48"]
    output = tmp_path / "out"
    options = ["--models", *named, "--sts", str(file), *sizes, "--output", str(output)]
    assert matryoshka.main(options) == 0
    found = json.loads((output / "matryoshka.json").read_text())
    for name, model in models.items():
        assert all(speed > 0 for speed in found["speed"][name].values())
        for layers in (1, 2):
            for dim in (8, 48):
                cut = {"num_layers": layers, "truncate_dim": dim, "normalize_embeddings": True}
                one, two = (
                    model.encode(texts, prompt_name="STS", **cut) for texts in (SENTENCES, OTHERS)
                )
                expected = 100 * spearmanr((one * two).sum(axis=1), SCORES).statistic
                value = found["spearman"][name][str(layers)][str(dim)][0]
                np.testing.assert_allclose(value, expected, atol=1e-6)
    shown = capsys.readouterr().out
    assert "| 1 layers, 8 dimensions |" in shown and "| layers | before | after |" in shown
    assert (output / "layers.png").stat().st_size > 1000 and (output / "widths.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "3", "--dims", "8"], "num_layers is 3: the model has 2 layers"),
        (["--layers", "1", "--dims", "49"], "truncate_dim is 49: give a whole number from 1 to 48"),
    ],
)
def test_sizes_that_the_model_has_not(file, tmp_path, capsys, options, message):
    make_model().save_pretrained(tmp_path / "m")
    place = ["--models", f"m={tmp_path / 'm'}", "--sts", str(file), "--output", str(tmp_path / "o")]
    assert matryoshka.main([*place, *options]) == 2
    assert f"error: {message}" in capsys.readouterr().err and not (tmp_path / "o").exists()
