"""A run: counts, accumulation, logs, evaluation, resuming, faults, and the folders it writes."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from killing import kill_when
from peft import AutoPeftModelForCausalLM
from processes import start
from tiny import SENTENCES, SLIDING, make_model
from torch.nn import functional as F
from transformers import AutoModel

from modeling_magnet.locking import folder_lock
from modeling_magnet.training.base import load_base
from modeling_magnet.training.collator import IGNORE
from modeling_magnet.training.from_arguments import make_trainer
from modeling_magnet.training.objectives import info_nce
from modeling_magnet.training.resume import last_complete_checkpoint
from modeling_magnet.training.run_folders import save_run
from modeling_magnet.training.train import train

ROOT = Path(__file__).parents[2]
TRAIN = "modeling_magnet.training.train"


def trainer_for(arguments):
    return make_trainer(arguments)


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


@pytest.mark.parametrize("architecture", [*SLIDING, "qwen3", "phi", "phi3"])
def test_a_run_of_another_architecture(run, corpus, architecture):
    """LoRA on all linear layers by whatever names, merged, saved, and the adapter on its base."""
    base = make_model(architecture=architecture)
    base.save_pretrained(corpus / "tiny")
    schedule = [{"steps": 10, "mntp": 1, "sscl": 1, "msg": 1}]
    arguments = run(objective_schedule=schedule, per_device_train_batch_size=4)
    trainer = trainer_for(arguments)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])

    def losses():
        with torch.no_grad():
            output = trainer.model.eval()(**batch)
        sscl = info_nce(*output.pair_vectors, temperature=0.1)
        return {"mntp": output.mntp.sum(), "msg": output.msg.sum(), "sscl": sscl}

    before = losses()
    trainer.train()
    after = losses()
    assert all(after[name] < before[name] for name in before), (before, after)
    adapted = save_run(trainer, arguments[0], corpus / "out")
    vectors = adapted.encode(SENTENCES)
    loaded = AutoModel.from_pretrained(corpus / "out" / "model", trust_remote_code=True)
    assert type(loaded).__name__ == type(base).__name__
    assert abs(loaded.encode(SENTENCES) - vectors).max() < 1e-5
    adapter = AutoPeftModelForCausalLM.from_pretrained(
        corpus / "out" / "adapter", trust_remote_code=True
    )
    assert abs(adapter.encode(SENTENCES) - vectors).max() < 1e-4
    assert abs(load_base(str(corpus / "out" / "adapter")).encode(SENTENCES) - vectors).max() < 1e-4
    adapted_layers = {n for n, m in adapter.named_modules() if n and hasattr(m, "lora_A")}
    linear = {n for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {n.removeprefix("base_model.model.model.") for n in adapted_layers} == linear


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"block_length": 60},
            "block_length is 60, but the model's max_length .*48: lower block_length",
        ),
        ({"pair_length": 60}, "pair_length is 60"),
    ],
)
def test_what_a_sliding_window_cannot_hold_is_refused_before_the_data_is_read(
    run, corpus, changes, message
):
    make_model(architecture="mistral sliding", sliding_window=48).save_pretrained(corpus / "tiny")
    with pytest.raises(ValueError, match=message):
        trainer_for(run(**changes))


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
    one, two = (
        F.normalize(model.pool(batch["pair_input_ids"][v], batch["pair_attention_mask"][v]), dim=-1)
        for v in (0, 1)
    )
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
        one, two = (F.normalize(v, dim=-1) for v in output.pair_vectors)
        sscl = -(one @ two.T / 0.1).log_softmax(1).diagonal().mean()
        mntp, msg = output.mntp.sum() / counts[0], output.msg.sum() / counts[1]
        (mntp + msg + sscl / 2).backward()
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


def losses(folder):
    curves = json.loads((folder / "results.json").read_text())["curves"]
    return {name: values for name, values in curves.items() if name != "learning_rate"}


def in_a_process(corpus, **how):
    """`python -m modeling_magnet.training.train` on the config that `run` wrote last."""
    return start("-m", TRAIN, corpus / "config.yaml", log=corpus / "log", **how)


LONG = {
    "objective_schedule": [
        {"steps": 20, "mntp": 1, "msg": 1, "ntp": 1, "divergence": 1},
        {"steps": 20, "mntp": 1, "sscl": 1, "msg": 1, "ntp": 1, "divergence": 1},
    ],
    "all_span_fraction": 0.25, "lora_dropout": 0.1, "save_strategy": "steps", "save_steps": 3,
    "save_total_limit": 2, "cut_blocks": [1, 2, 4],
}  # fmt: skip


def test_a_run_killed_twice_at_random_gives_the_losses_of_a_whole_one(run, corpus):
    """kill -9 in a process of its own, with dropout; from step 0 to the end, and the same weights."""
    train(run(**LONG, output_dir=str(corpus / "whole")))
    run(**LONG)
    wait = random.Random(0)
    for _ in range(2):
        killed = in_a_process(corpus)
        begun = len(list((corpus / "out").glob("checkpoint-*")))
        while len(list((corpus / "out").glob("checkpoint-*"))) <= min(begun, 1):
            assert killed.is_alive(), (corpus / "log").read_text()
            time.sleep(0.02)
        time.sleep(wait.uniform(0, 0.4))
        killed.kill()
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
    assert not (corpus / "out" / "model").exists()
    finished = in_a_process(corpus)
    finished.join()
    assert finished.exitcode == 0, (corpus / "log").read_text()
    assert losses(corpus / "out") == losses(corpus / "whole")
    one, two = (
        AutoModel.from_pretrained(corpus / name / "model", trust_remote_code=True).encode(SENTENCES)
        for name in ("out", "whole")
    )
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_checkpoint_in_pieces_is_said_and_the_one_before_is_used(run, corpus, caplog):
    changes = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(run(**changes))
    out = corpus / "out"
    expected = parameters(whole)
    assert last_complete_checkpoint(out) == str(out / "checkpoint-6")
    (out / "checkpoint-6" / "trainer_state.json").unlink()  # what is written last
    weights = out / "checkpoint-4" / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert last_complete_checkpoint(out) == str(out / "checkpoint-2")
    assert "checkpoint-6 is not complete" in caplog.text
    assert "checkpoint-4 is not complete" in caplog.text
    weights.write_bytes(content)
    optimizer = out / "checkpoint-4" / "optimizer.pt"
    flipped = bytearray(optimizer.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    optimizer.write_bytes(flipped)
    resumed = trainer_for(run(**changes))
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(out))
    for name, value in parameters(resumed).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)
    for path in out.glob("checkpoint-*"):
        (path / "trainer_state.json").unlink()
    assert last_complete_checkpoint(out) is None
    assert "the run starts from the beginning" in caplog.text


def test_a_full_disk_leaves_the_last_checkpoint(run, corpus):
    """There is room for the adapter's file, but not for the optimizer's, which is larger."""
    run(**LONG)
    checkpoint = corpus / "out" / "checkpoint-3"
    kill_when(checkpoint / "trainer_state.json", "-m", TRAIN, corpus / "config.yaml")
    for path in (corpus / "out").glob("checkpoint-*"):
        if path != checkpoint:
            (path / "trainer_state.json").unlink(missing_ok=True)
    room = (checkpoint / "adapter_model.safetensors").stat().st_size + 1000
    full = in_a_process(corpus, largest=room)
    full.join()
    assert full.exitcode == 1 and "Error" in (corpus / "log").read_text()
    assert last_complete_checkpoint(corpus / "out").endswith("checkpoint-3")


def test_another_run_s_folder_is_refused(run, corpus):
    train(run(objective_schedule=[{"steps": 1, "mntp": 1}]))
    with pytest.raises(ValueError, match="learning_rate was 0.005, is 0.1"):
        train(run(objective_schedule=[{"steps": 1, "mntp": 1}], learning_rate=0.1))


def test_two_runs_at_a_time_do_not_share_a_folder(run, corpus):
    """The second is told who is in there before it writes; the lock goes with its process."""
    arguments, out = run(), corpus / "out"
    out.mkdir()
    with (
        folder_lock(out),
        pytest.raises(BlockingIOError, match=f"out is in use by process {os.getpid()} on"),
    ):
        train(arguments)
    assert not list(out.iterdir())
    (out / "run.json").write_text("{")
    with pytest.raises(ValueError, match="run.json is damaged .*give another output_dir"):
        train(arguments)


def test_a_loss_that_is_no_number_stops_the_run(run):
    trainer = trainer_for(run())
    with torch.no_grad():
        trainer.model.get_base_model().model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1 \(mntp nan"):
        trainer.train()


def test_a_gradient_that_is_no_number_stops_the_run(run):
    trainer = trainer_for(run())
    weight = next(p for n, p in trainer.model.named_parameters() if "lora_A" in n)
    weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        FloatingPointError, match="norm is (nan|inf) at step 1, although the loss was finite"
    ):
        trainer.train()


# Evaluation


def test_what_is_evaluated_equals_a_computation_by_hand(run):
    trainer = trainer_for(run(eval_strategy="steps", eval_steps=2, pair_length=128))
    metrics = trainer.evaluate()
    model, dataset = trainer.model.get_base_model().eval(), trainer.eval_dataset
    assert len(dataset) == 6 and dataset.pairs_per_block == 2
    sums = {name: [0.0, 0] for name in ("mntp", "span", "left_only", "causal")}

    def add(name, scores, tokens, positions):
        for t in positions:
            sums[name][0] += (
                float(scores[t - 1].argmax() == tokens[t]) if name == "mntp"
                else -float(scores[t - 1].log_softmax(-1)[tokens[t]])
            )  # fmt: skip
            sums[name][1] += 1

    sentences = []
    for i in range(6):
        item = dataset[i]
        sentences += item.pairs
        batch = trainer.data_collator([item])
        tokens, span_ids = torch.tensor(item.block).long(), batch["span_ids"]
        spans = span_ids[0].nonzero()[:, 0].tolist()
        with torch.no_grad():
            masked = model(input_ids=batch["input_ids"], span_ids=span_ids).logits[0]
            clean = model(input_ids=tokens[None], span_ids=span_ids).logits[0]
            left = model(input_ids=tokens[None]).logits[0]
        selected = (batch["mntp_labels"][0] != IGNORE).nonzero()[:, 0].tolist()
        add("mntp", masked, tokens, selected)
        add("span", clean, tokens, spans)
        add("left_only", left, tokens, spans)
        add("causal", left, tokens, range(1, len(tokens)))
    means = {name: total / count for name, (total, count) in sums.items()}
    assert metrics["eval_mntp_accuracy"] == pytest.approx(means["mntp"])
    for name in ("span", "left_only", "causal"):
        assert metrics[f"eval_{name}_perplexity"] == pytest.approx(np.exp(means[name]), rel=1e-4)
    one, two = (model.encode([p[v] for p in sentences], normalize_embeddings=True) for v in (0, 1))
    right = (one @ two.T).argmax(axis=1) == np.arange(12)
    assert metrics["eval_pair_accuracy"] == pytest.approx(right.mean())


def test_the_best_checkpoint_is_kept_and_a_run_stops_early(run, corpus):
    """With a learning rate that soon ruins the model."""
    changes = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_span_perplexity",
        "greater_is_better": False, "early_stopping_patience": 2, "learning_rate": 0.1,
        "objective_schedule": [{"steps": 40, "mntp": 1, "msg": 1}], "save_total_limit": 1,
    }  # fmt: skip
    trainer = trained(run(**changes))
    evaluations = [log for log in trainer.state.log_history if "eval_span_perplexity" in log]
    best = min(evaluations, key=lambda log: log["eval_span_perplexity"])
    assert trainer.state.global_step < 40
    assert trainer.state.global_step == best["step"] + 4
    again = trainer.evaluate()
    assert again["eval_span_perplexity"] == pytest.approx(best["eval_span_perplexity"], rel=1e-5)


def test_a_run_of_sentences_alone_is_evaluated_too(run):
    """SimCSE: one column, positives by dropout, no text."""
    trainer = trained(
        run(
            text=[],
            validation_text=[],
            pair_columns=["sentence"],
            lora_dropout=0.1,
            eval_steps=6,
            objective_schedule=[{"steps": 6, "sscl": 1}],
            eval_strategy="steps",
        )
    )
    metrics = next(log for log in trainer.state.log_history if "eval_pair_accuracy" in log)
    assert metrics["eval_pair_accuracy"] == 1.0  # no dropout there: a sentence is nearest to itself
    assert "eval_span_perplexity" not in metrics


def test_fewer_pairs_than_blocks_to_evaluate_on_are_refused(run):
    """They would come twice, and the nearest of two that are one is a matter of chance."""
    with pytest.raises(ValueError, match="5 pairs for 6 blocks"):
        trainer_for(run(eval_strategy="steps", eval_steps=2, validation_pair_count=5))


# What Trainer offers


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"gradient_checkpointing": True}, 1e-5),
        ({"pair_chunk": 3}, 1e-5),
        ({"dataloader_num_workers": 2}, 0),
        ({"bf16": True}, 0.05),
        ({"attn_implementation": "eager"}, 1e-4),
    ],
    ids=str,
)
def test_a_setting_that_must_not_change_the_losses(run, corpus, changes, tolerance):
    schedule = LONG["objective_schedule"]
    schedule = [phase | {"steps": 2} for phase in schedule]
    same = {"objective_schedule": schedule, "all_span_fraction": 0.25, "learning_rate": 5e-4}
    plain, other = (
        [log for log in trained(run(**same, **extra)).state.log_history if "loss" in log]
        for extra in ({"output_dir": str(corpus / "plain")}, changes)
    )
    assert len(plain) == len(other) == 4
    for expected, got in zip(plain, other):
        for name in ("loss", "mntp", "msg", "ntp", "divergence", "sscl"):
            if name in expected:
                assert float(got[name]) == pytest.approx(
                    float(expected[name]), rel=tolerance, abs=tolerance
                )


def test_torch_compile_changes_no_loss(run, corpus):
    make_model(num_hidden_layers=1).save_pretrained(corpus / "tiny")
    text = {"objective_schedule": [{"steps": 2, "mntp": 1, "msg": 1}]}
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    plain, other = (
        [float(log["loss"]) for log in trained(run(**text, **extra)).state.log_history[:2]]
        for extra in ({"output_dir": str(corpus / "plain")}, compiled)
    )
    assert other == pytest.approx(plain, rel=1e-4)


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)
def test_compiled_layers_change_neither_loss_nor_dropout(run, corpus):
    schedule = [dict(steps=2, mntp=1, sscl=1, msg=1, ntp=1)]
    both = {"all_span_fraction": 0.25, "objective_schedule": schedule}
    both |= {"attn_implementation": "eager", "lora_dropout": 0.3, "attention_dropout": 0.3}
    plain, other = (
        [float(log["loss"]) for log in trained(run(**both, **extra)).state.log_history[:2]]
        for extra in ({"output_dir": str(corpus / "plain")}, {"compile_layers": True})
    )
    assert other == pytest.approx(plain, rel=1e-4)


def test_recomputation_with_attention_dropout_on_pairs_only_is_refused(run):
    both = {"attention_dropout": 0.1, "gradient_checkpointing": True}
    with pytest.raises(
        ValueError, match="attention_dropout is 0.1, which is off while text is read"
    ):
        make_trainer(run(**both))
    make_trainer(run(**both, objective_schedule=[{"steps": 6, "sscl": 1}]))


def test_a_run_goes_on_from_another_run_s_adapter(run, corpus):
    first = train(run(output_dir=str(corpus / "first")))
    begun = {"adapter": str(corpus / "first" / "adapter"), "output_dir": str(corpus / "second")}
    trainer = make_trainer(run(**begun, projection_head=False))
    trainer.model.eval()
    np.testing.assert_allclose(
        trainer.model.get_base_model().encode(SENTENCES), first.encode(SENTENCES), atol=1e-5
    )
    assert any(p.requires_grad for n, p in trainer.model.named_parameters() if "lora_A" in n)


def test_an_adapter_that_does_not_fit_is_refused(run, corpus):
    train(run(output_dir=str(corpus / "first")))
    adapter = str(corpus / "first" / "adapter")
    with pytest.raises(ValueError, match="has r 4, this run has 2: give the same"):
        make_trainer(run(adapter=adapter, lora_r=2))
    with pytest.raises(ValueError, match="Can't find 'adapter_config.json'"):
        make_trainer(run(adapter=str(corpus / "second")))
    with pytest.raises(ValueError, match="adapter is .*, but lora_r is 0"):
        train(run(adapter=adapter, lora_r=0, output_dir=str(corpus / "whole")))
    assert not (corpus / "whole").exists()


def test_the_card_tells_of_the_runs_before(run, corpus):
    train(run(output_dir=str(corpus / "first"), learning_rate=1e-3))
    before = str(corpus / "first" / "adapter")
    train(run(output_dir=str(corpus / "second"), adapter=before, attention_dropout=0.3))
    card = (corpus / "second" / "model" / "README.md").read_text()
    assert "8 pairs; then 8 blocks of 40 tokens, 8 pairs at attention dropout 0.3 |" in card
    assert "| learning rate | 0.001, constant; then 0.005, constant |" in card
    assert str(corpus) not in card


def test_documents_apart_train(run):
    trainer = trained(run(separate_documents=True, block_length=120))
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["document_ids"].max() >= 1
    assert np.isfinite(float(trainer.state.log_history[-2]["loss"]))


def test_a_mask_that_is_no_token_is_said_before_the_data_is_read(run):
    with pytest.raises(ValueError, match=r"mask_token is '<mask>', which is \d+ tokens"):
        trainer_for(run(mask_token="<mask>", text=["nowhere.txt"], start_token="<s>"))


@pytest.mark.parametrize(("pair_length", "cut"), [(48, True), (200, False)])
def test_sentences_that_are_cut_are_counted(run, caplog, pair_length, cut):
    with caplog.at_level("INFO"):
        trainer_for(run(pair_length=pair_length))
    assert ("of the first 12 pairs hold a sentence that is cut to 48 tokens" in caplog.text) == cut


def test_results_curves_and_tensorboard(run, corpus):
    train(run(eval_strategy="steps", eval_steps=3, report_to="tensorboard", max_steps=6))
    out = corpus / "out"
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = (out / "results.md").read_text()
    assert (
        "| eval_span_perplexity |" in table and "- seed: 42" in table and str(corpus) not in table
    )
    assert list(out.rglob("events.out.tfevents*"))


def test_push_to_hub_uploads_the_merged_model_with_its_card(run, corpus, tmp_path):
    run(push_to_hub=True, hub_model_id="adapted", max_steps=1)
    with HubServer() as hub:
        pushed = subprocess.run(
            [sys.executable, "-m", TRAIN, corpus / "config.yaml"],
            env={**os.environ, "PYTHONPATH": str(ROOT), **hub.environment(tmp_path / "cache")},
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert pushed.returncode == 0, pushed.stderr
        files = hub.files("hf-test-user/adapted")
    assert {"model.safetensors", "modeling_magnet.py", "modules.json"} <= files.keys()
    assert b"| seed | 42 |" in files["README.md"]
    assert not any(name.startswith("checkpoint-") for name in files)


@pytest.mark.parametrize("lora_r", [4, 0])
@pytest.mark.parametrize("projection_head", [True, False])
def test_the_folders_of_a_run(run, corpus, lora_r, projection_head):
    arguments = run(lora_r=lora_r, projection_head=projection_head)
    adapted = train(arguments)
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


def test_a_run_notes_the_longest_text_that_it_trained_on(run, corpus):
    """And one of sentences alone keeps what the run before it record_settings."""
    text = {"steps": 1, "mntp": 1, "msg": 1}
    first, second = corpus / "first", corpus / "second"
    train(run(objective_schedule=[text], cut_blocks=[2, 4], output_dir=str(first)))
    alone = {"objective_schedule": [{"steps": 1, "sscl": 1}], "text": [], "validation_text": []}
    train(run(**alone, model=str(first / "base"), output_dir=str(second)))
    for folder in (first / "model", second / "model"):
        config = json.loads((folder / "config.json").read_text())
        assert config["magnet"]["trained_length"] == 20  # half of a block


def test_several_gpus_in_one_process_are_refused(run, monkeypatch):
    arguments = run()
    monkeypatch.setattr(type(arguments[2]), "n_gpu", property(lambda self: 2))
    with pytest.raises(ValueError, match="start one process per GPU"):
        trainer_for(arguments)
