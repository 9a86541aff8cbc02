"""A run: counts, accumulation, logs, resuming, and the folders it writes."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM
from tiny import SENTENCES
from transformers import AutoModel, set_seed

from training.base import load_base
from training.collator import IGNORE
from training.train import make_trainer, settle_start_token, train


def base_for(arguments):
    model = load_base(arguments[0].model)
    settle_start_token(model, *arguments[:2])
    return model


def trainer_for(arguments):
    set_seed(arguments[2].seed)
    return make_trainer(base_for(arguments), arguments)


def trained(arguments):
    trainer = trainer_for(arguments)
    trainer.train()
    return trainer


def parameters(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def test_a_run_lowers_all_three_losses(run):
    schedule = [{"steps": 40, "mntp": 1, "sscl": 1, "msg": 1}]
    logs = trained(run(objective_schedule=schedule, logging_steps=10)).state.log_history
    for name in ("mntp", "msg", "sscl", "loss"):
        assert float(logs[3][name]) < float(logs[0][name])


def test_the_losses_logged_are_means_over_their_own_labels(run):
    arguments = run(
        learning_rate=0.0, objective_schedule=[{"steps": 1, "mntp": 2, "sscl": 3, "msg": 1}]
    )
    trainer = trained(arguments)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    model = trainer.model.get_base_model()
    logits = model(input_ids=batch["input_ids"], span_ids=batch["span_ids"]).logits
    log_probabilities = logits[:, :-1].log_softmax(-1)
    expected = {}
    for name in ("mntp", "msg"):
        labels = batch[f"{name}_labels"][:, 1:]
        picked = labels != IGNORE
        values = log_probabilities.gather(2, labels.clamp(min=0)[..., None])[..., 0]
        expected[name] = -float(values[picked].mean())
    vectors = model.pool(batch["pair_input_ids"], batch["pair_attention_mask"])
    one, two = torch.nn.functional.normalize(vectors, dim=-1).chunk(2)
    expected["sscl"] = float(-(one @ two.T / 0.1).log_softmax(1).diagonal().mean())
    expected["loss"] = 2 * expected["mntp"] + 3 * expected["sscl"] + expected["msg"]
    for name, value in expected.items():
        assert float(trainer.state.log_history[0][name]) == pytest.approx(value, abs=2e-4)


def test_accumulation_gives_the_same_parameters(run):
    """1 x 8 and 2 x 4: MNTP and MSG are normalised over the whole accumulated batch."""
    changes = {"objective_schedule": [{"steps": 3, "mntp": 1, "sscl": 0, "msg": 1}]}
    changes |= {"optim": "sgd", "learning_rate": 0.1}  # AdamW turns rounding into steps
    changes["max_grad_norm"] = 0.0  # clipping would hide a wrong scale
    whole = parameters(trained(run(**changes)))
    changes |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    halves = parameters(trained(run(**changes)))
    moved = parameters(trainer_for(run(**changes)))
    assert max(float((whole[n] - moved[n]).abs().max()) for n in whole) > 1e-3
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, atol=1e-5, rtol=0)


def test_accumulated_gradient_equals_the_whole_batch_s(run):
    """The gradient itself, before the optimizer, with SSCL as the mean of the two halves'."""
    schedule = [{"steps": 1, "mntp": 1, "sscl": 1, "msg": 1}]

    def gradients(**changes):
        trainer = trainer_for(run(objective_schedule=schedule, max_grad_norm=0.0, **changes))
        seen = {}
        step = torch.optim.AdamW.step

        def keep(self, *args, **kwargs):
            named = trainer.model.named_parameters()
            seen.update({n: p.grad.clone() for n, p in named if p.grad is not None})
            return step(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", keep)
            trainer.train()
        return seen

    halves = gradients(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    fresh = trainer_for(run(objective_schedule=schedule))
    batches = [
        fresh.data_collator([fresh.train_dataset[i] for i in part])
        for part in (range(4), range(4, 8))
    ]
    counts = [
        sum((b[f"{n}_labels"][:, 1:] != IGNORE).sum() for b in batches) for n in ("mntp", "msg")
    ]
    for batch in batches:
        output = fresh.model(**batch)
        one, two = (torch.nn.functional.normalize(v, dim=-1) for v in output.pair_vectors.chunk(2))
        sscl = -(one @ two.T / 0.1).log_softmax(1).diagonal().mean()
        (output.mntp_sum / counts[0] + output.msg_sum / counts[1] + sscl / 2).backward()
    compared = 0
    for name, parameter in fresh.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(halves[name], parameter.grad, atol=1e-6, rtol=1e-4)
            compared += 1
    assert compared == len(halves) > 10


def test_the_schedule_switches_objectives(run):
    schedule = [
        {"steps": 2, "mntp": 1, "sscl": 0, "msg": 1},
        {"steps": 2, "mntp": 0, "sscl": 9, "msg": 0},
    ]
    logs = trained(run(objective_schedule=schedule)).state.log_history
    assert [("mntp" in log, "sscl" in log) for log in logs[:4]] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    assert float(logs[3]["loss"]) == pytest.approx(9 * float(logs[3]["sscl"]), abs=1e-3)


def test_a_killed_run_goes_on_where_it_was(run, corpus):
    changes = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(run(**changes))
    shutil.rmtree(corpus / "out" / "checkpoint-6")
    shutil.rmtree(corpus / "out" / "checkpoint-4")
    resumed = trainer_for(run(**changes))
    resumed.train(resume_from_checkpoint=str(corpus / "out" / "checkpoint-2"))
    losses = [
        [log["loss"] for log in t.state.log_history if "loss" in log] for t in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    for name, value in parameters(whole).items():
        torch.testing.assert_close(parameters(resumed)[name], value, atol=1e-6, rtol=0)


@pytest.mark.parametrize("lora_r", [4, 0])
@pytest.mark.parametrize("projection_head", [True, False])
def test_the_folders_of_a_run(run, corpus, lora_r, projection_head):
    arguments = run(lora_r=lora_r, projection_head=projection_head)
    adapted = train(base_for(arguments), arguments)
    out = corpus / "out"
    vectors = adapted.encode(SENTENCES)
    before = AutoModel.from_pretrained(out / "base", trust_remote_code=True)
    loaded = AutoModel.from_pretrained(out / "model", trust_remote_code=True)
    assert "projection" not in str(list(loaded.state_dict()))
    np.testing.assert_allclose(loaded.encode(SENTENCES), vectors, atol=1e-6)
    assert abs(before.encode(SENTENCES) - vectors).max() > 0.01
    card = (out / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers")
    assert str(corpus) not in card and "| base model | tiny |" in card
    assert "6 steps of mntp 1, sscl 1, msg 1" in card and "Losses at the end: mntp" in card
    if lora_r:
        adapter = AutoPeftModelForCausalLM.from_pretrained(out / "adapter", trust_remote_code=True)
        assert abs(adapter.encode(SENTENCES) - vectors).max() < 1e-5
        config = json.loads((out / "adapter" / "adapter_config.json").read_text())
        assert config["modules_to_save"] is None
    else:
        assert not (out / "adapter").exists()


def test_sscl_without_pairs_is_an_error(run):
    with pytest.raises(ValueError, match="set pairs_per_block"):
        trained(run(pairs_per_block=0))


@pytest.mark.parametrize("name", ["world_size", "n_gpu"])
def test_a_run_on_several_devices_is_refused(run, monkeypatch, name):
    arguments = run()
    monkeypatch.setattr(type(arguments[2]), name, property(lambda self: 2))
    with pytest.raises(ValueError, match="trains on one of each"):
        trainer_for(arguments)
