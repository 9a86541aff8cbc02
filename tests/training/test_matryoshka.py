"""Training over widths and layers: what a step computes, and what a run leaves behind."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from sentence_transformers.sentence_transformer import losses
from tiny import SENTENCES, make_model
from torch import nn
from torch.nn import functional as F

from modeling_magnet import load_magnet
from modeling_magnet.cli import exporting
from modeling_magnet.training import MagnetConfig, MagnetTrainer
from modeling_magnet.training.from_arguments import check_arguments, make_trainer
from modeling_magnet.training.matryoshka import draw_sizes, shorter_losses
from modeling_magnet.training.objectives import cosent, info_nce, objectives_class_for

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "phi"])
@pytest.mark.parametrize("pooling", ["end", "mean"])
@pytest.mark.parametrize("chunk", [0, 3])
def test_one_pass_gives_the_vectors_of_two_depths_with_their_gradients(
    architecture, pooling, chunk
):
    model = make_model(architecture=architecture, num_hidden_layers=2)
    model.config.magnet = {"pooling": pooling}
    ids = torch.randint(3, 350, (2, 4, 6), generator=GENERATOR)
    mask = torch.ones_like(ids)
    mask[1, 2, 4:] = 0
    pairs = [rows.flatten(0, 1) for rows in (ids, mask)]
    weights = torch.randn(2, 2, 4, 48, generator=GENERATOR)

    def gradients_of(vectors, early):
        model.zero_grad()
        (torch.stack([vectors, early]) * weights).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = [model.pool(*pairs, num_layers=n).unflatten(0, (2, 4)) for n in (2, 1)]
    wanted = gradients_of(*expected)
    model.__class__, model.projection = objectives_class_for(type(model)), nn.Identity()
    output = model(pair_input_ids=ids, pair_attention_mask=mask, pair_chunk=chunk, early_layers=1)
    torch.testing.assert_close([output.pair_vectors, output.early_vectors], expected)
    found = gradients_of(output.pair_vectors, output.early_vectors)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert len(model.base_model.layers) == 2
    alone = model(pair_input_ids=ids, pair_attention_mask=mask)
    torch.testing.assert_close(alone.pair_vectors, expected[0])
    assert alone.early_vectors is None


def test_layers_that_are_compiled_are_tapped_too():
    model = make_model()
    model.__class__, model.projection = objectives_class_for(type(model)), nn.Identity()
    ids = torch.randint(3, 350, (2, 4, 6), generator=GENERATOR)
    batch = {"pair_input_ids": ids, "pair_attention_mask": torch.ones_like(ids)}
    expected = model(**batch, early_layers=1).early_vectors
    for layer in model.base_model.layers:
        layer.compile(backend="eager")
    model(**batch)  # compiled without
    torch.testing.assert_close(model(**batch, early_layers=1).early_vectors, expected)


class Given(nn.Module):
    """Stands in for a model of sentence-transformers whose vectors are given."""

    def forward(self, features):
        return {"sentence_embedding": features["vectors"]}

    def get_embedding_dimension(self):
        return 12


@pytest.mark.parametrize("width", [4, None])
@pytest.mark.parametrize("loss", ["sscl", "cosent"])
def test_losses_of_shorter_and_early_vectors_are_those_of_sentence_transformers(loss, width):
    """Its `MatryoshkaLoss` on the states of each depth; the divergence against a loop."""
    vectors, early = torch.randn(2, 2, 5, 12, generator=GENERATOR)
    scores, temperature = torch.rand(5, generator=GENERATOR), 0.2
    if loss == "sscl":
        theirs = losses.MultipleNegativesRankingLoss(Given(), scale=1 / temperature)
        ours = lambda v: {"sscl": info_nce(v[0], v[1], temperature)}  # noqa: E731
    else:
        theirs = losses.CoSENTLoss(Given(), scale=1 / temperature)
        ours = lambda v: {"cosent": cosent(v, scores, temperature)}  # noqa: E731

    def expected_of(states, dim):
        cut = losses.MatryoshkaLoss(theirs.model, theirs, [dim])
        return float(cut([{"vectors": view.clone()} for view in states], scores))

    parts = [expected_of(early, 12)]
    if width is not None:
        parts += [expected_of(vectors, width), expected_of(early, width)]
    own, last = (F.normalize(v.flatten(0, 1), dim=-1) for v in (early, vectors))
    divergence = 0.0
    for i in range(10):
        others = [j for j in range(10) if j != i]
        p, q = (((v[i] @ v[others].T) / temperature).softmax(-1) for v in (last, own))
        divergence += float((p * (p / q).log()).sum()) / 10
    found = shorter_losses(ours, vectors, early, width, temperature)
    assert float(found[loss]) == pytest.approx(np.mean(parts) + divergence, abs=1e-4)
    if width is not None:  # widths alone
        found = shorter_losses(ours, vectors, None, width, temperature)
        assert float(found[loss]) == pytest.approx(parts[1], abs=1e-4)


def test_a_step_s_draw_depends_on_seed_and_step_alone(tmp_path):
    args = MagnetConfig(
        output_dir=str(tmp_path), matryoshka_dims=[8, 16], matryoshka_layers=[1, 2, 3]
    )
    draws = [draw_sizes(args, step) for step in range(60)]
    assert draws == [draw_sizes(args, step) for step in range(60)]
    assert set(draws) == {(n, d) for n in (1, 2, 3) for d in (8, 16)}
    assert draw_sizes(MagnetConfig(output_dir=str(tmp_path)), 3) == (None, None)


PAIRS = Dataset.from_dict(
    {"anchor": [f"{i} {a}" for i, a in enumerate(SENTENCES * 2)], "positive": SENTENCES * 2}
)
QUIET = {
    "per_device_train_batch_size": 10, "learning_rate": 5e-3, "logging_steps": 1, "max_steps": 12,
    "save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    "other_prompt_fraction": 0.0,
}  # fmt: skip
SIZES = {"matryoshka_dims": [8], "matryoshka_layers": [1]}


def test_a_run_teaches_short_and_early_vectors_and_the_folder_says_so(tmp_path):
    def early_loss(model):
        cut = {"num_layers": 1, "truncate_dim": 8, "convert_to_tensor": True}
        queries, candidates = (model.encode(PAIRS[name][:], **cut) for name in PAIRS.column_names)
        return float(info_nce(queries, candidates[:5].repeat(2, 1), 0.1))

    make_model().save_pretrained(tmp_path / "base")
    before = early_loss(make_model())
    losses = {}
    for name, sizes in (("with", SIZES), ("without", {})):
        args = MagnetConfig(output_dir=str(tmp_path / "run"), **QUIET, **sizes)
        lora = LoraConfig(r=4, target_modules="all-linear")
        trainer = MagnetTrainer(tmp_path / "base", args, train_dataset=PAIRS, peft_config=lora)
        trainer.train()
        trainer.save_model(str(tmp_path / name))
        losses[name] = early_loss(load_magnet(tmp_path / name))
        logged = [line for line in trainer.state.log_history if "matryoshka" in line]
        assert len(logged) == (12 if sizes else 0)
    assert losses["with"] < min(before, losses["without"]) - 0.05
    settings = load_magnet(tmp_path / "with").magnet_settings
    assert (settings.matryoshka_dims, settings.matryoshka_layers) == ([8, 48], [1, 2])
    assert load_magnet(tmp_path / "without").magnet_settings.matryoshka_dims == []
    exporting.export(load_magnet(tmp_path / "with"), "encoder", tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())
    assert config["matryoshka_dimensions"] == [8, 48]


def test_sizes_that_do_not_fit(run, tmp_path):
    for sizes, message in (
        (
            {"matryoshka_layers": [2]},
            "matryoshka_layers holds 2: the model has 2 layers, give numbers",
        ),
        ({"matryoshka_dims": [8, 48]}, "matryoshka_dims holds 48: the model has 48 dimensions"),
    ):
        args = MagnetConfig(output_dir=str(tmp_path / "run"), **QUIET, **sizes)
        with pytest.raises(ValueError, match=message):
            MagnetTrainer(make_model(), args, train_dataset=PAIRS)
        with pytest.raises(ValueError, match=message):
            make_trainer(run(**sizes, projection_head=False))
    with pytest.raises(ValueError, match="a number of matryoshka_dims is 0"):
        MagnetConfig(output_dir=str(tmp_path / "run"), **QUIET, matryoshka_dims=[8, 0])
    with pytest.raises(ValueError, match="set projection_head to false"):
        check_arguments(run(matryoshka_dims=[8]))
    with pytest.raises(ValueError, match="no objective on sentence vectors has a weight"):
        run(matryoshka_layers=[1], objective_schedule=[{"steps": 1, "mntp": 1}])
    text = Dataset.from_dict({"text": [" ".join(SENTENCES)] * 4})
    args = MagnetConfig(output_dir=str(tmp_path / "run"), **QUIET, **SIZES, block_length=40)
    with pytest.raises(ValueError, match="no objective on sentence vectors has a weight"):
        MagnetTrainer(make_model(), args, train_dataset=text)
