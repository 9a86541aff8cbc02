"""The losses against a computation of their own, in plain loops."""

import math

import pytest
import torch
from oracle import allowed
from tiny import ARCHITECTURES, make_model, make_spaced_tokenizer
from torch import nn

from modeling_magnet import load_magnet
from modeling_magnet.training.arguments import ModelArguments
from modeling_magnet.training.base import (
    choose_start_token,
    load_for_training,
    prepare_base,
    single_token_id,
)
from modeling_magnet.training.collator import IGNORE
from modeling_magnet.training.objectives import (
    MagnetLlamaForObjectives,
    info_nce,
    labelled_cross_entropy,
    labelled_divergence,
    objectives_class_for,
)

GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("chunk", [2, 512])
def test_labelled_cross_entropy_equals_a_loop(monkeypatch, in_place, chunk):
    monkeypatch.setattr("modeling_magnet.training.objectives.HEAD_CHUNK", chunk)
    hidden = torch.randn(5, 9, 5, dtype=torch.float64, generator=GENERATOR)
    head = nn.Linear(5, 11).double()
    labels = torch.randint(0, 11, (5, 9), generator=GENERATOR)
    labels[torch.rand(5, 9, generator=GENERATOR) < 0.6] = IGNORE
    labels[2] = IGNORE
    expected, right, count = [0.0] * 5, [0] * 5, 0
    for b in range(5):
        for t in range(0 if in_place else 1, 9):
            if labels[b, t] != IGNORE:
                scores = head(hidden[b, t if in_place else t - 1]).tolist()
                total = math.log(sum(math.exp(s) for s in scores))
                expected[b] += total - scores[labels[b, t]]
                right[b] += int(scores[labels[b, t]] == max(scores))
                count += 1
    assert count > 3
    losses, correct = labelled_cross_entropy(hidden, labels, head, in_place)
    assert losses.tolist() == pytest.approx(expected, abs=1e-5)
    assert correct.tolist() == right
    nothing = torch.full((5, 9), IGNORE)
    assert labelled_cross_entropy(hidden, nothing, head)[0].sum().item() == 0


def test_chunks_change_neither_losses_nor_gradients(monkeypatch):
    hidden = torch.randn(2, 9, 5, generator=GENERATOR, requires_grad=True)
    base = torch.randn(2, 9, 5, generator=GENERATOR)
    head = nn.Linear(5, 11)
    labels = torch.randint(0, 11, (2, 9), generator=GENERATOR)
    results = []
    for chunk in (512, 3):
        monkeypatch.setattr("modeling_magnet.training.objectives.HEAD_CHUNK", chunk)
        losses, _ = labelled_cross_entropy(hidden, labels, head)
        total = losses.sum() + labelled_divergence(hidden, base, labels, head).sum()
        results.append((total, *torch.autograd.grad(total, [hidden, head.weight])))
    for one, two in zip(*results):
        torch.testing.assert_close(one, two)


def test_divergence_equals_a_loop():
    hidden, base = torch.randn(2, 1, 4, 5, generator=GENERATOR).unbind(0)
    head = nn.Linear(5, 6)
    labels = torch.tensor([[IGNORE, 3, IGNORE, 2]])
    expected = 0.0
    for t in (0, 2):
        p, q = (head(states[0, t]).softmax(-1).tolist() for states in (base, hidden))
        expected += sum(a * math.log(a / b) for a, b in zip(p, q))
    assert float(labelled_divergence(hidden, base, labels, head)) == pytest.approx(
        expected, abs=1e-5
    )


@pytest.mark.parametrize("negatives", [0, 2])
def test_info_nce_equals_a_loop(negatives):
    queries = torch.randn(4, 6, generator=GENERATOR)
    candidates = torch.randn(4 + negatives, 6, generator=GENERATOR)
    expected = 0.0
    for i in range(4):
        similarity = [
            float(queries[i] @ c) / float(queries[i].norm() * c.norm()) / 0.07 for c in candidates
        ]
        expected += math.log(sum(map(math.exp, similarity))) - similarity[i]
    assert float(info_nce(queries, candidates, 0.07)) == pytest.approx(expected / 4, abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # similarities in bf16 would be off by 1e-2 / 0.07
        assert float(info_nce(queries, candidates, 0.07)) == pytest.approx(expected / 4, abs=1e-5)


def training_model(tmp_path, base=None, **arguments):
    (base or make_model()).save_pretrained(tmp_path / "base")
    return load_for_training(tmp_path / "base", ModelArguments(**arguments))


def batch_of(ids, span_ids):
    mntp = torch.full_like(ids, IGNORE)
    mntp[0, 1] = mntp[1, 6] = 17
    pairs = torch.randint(3, 350, (2, 2, 5), generator=GENERATOR)
    real = torch.ones_like(pairs)
    real[0, 1, 3:] = 0
    return {
        "input_ids": ids, "span_ids": span_ids, "mntp_labels": mntp,
        "msg_labels": torch.where(span_ids > 0, ids, IGNORE),
        "pair_input_ids": pairs, "pair_attention_mask": real,
    }  # fmt: skip


@pytest.mark.parametrize("documents", [False, True])
def test_one_pass_gives_all_parts(tmp_path, monkeypatch, documents):
    """Against the stock decoder under the oracle's mask and all logits, and against `pool`."""
    monkeypatch.setattr(
        "modeling_magnet.training.objectives.MIN_GROUP_SIZE", 1
    )  # the sentences in groups by length
    base = make_model()
    model = training_model(tmp_path, base, lora_r=0).eval()
    ids = torch.randint(3, 350, (2, 9), generator=GENERATOR)
    span_ids = torch.tensor([[0, 0, 1, 1, 0, 0, 2, 2, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0]])
    batch = batch_of(ids, span_ids)
    mask = allowed(span_ids, torch.ones_like(ids))[:, None]
    if documents:
        batch["document_ids"] = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0] * 6 + [1] * 3])
        mask &= (batch["document_ids"][:, :, None] == batch["document_ids"][:, None])[:, None]
    output = model(**batch)
    logits = super(type(base), base).forward(input_ids=ids, attention_mask=mask).logits
    log_probabilities = logits.log_softmax(-1)
    for name in ("mntp", "msg"):
        labels = batch[f"{name}_labels"]
        for b in range(2):
            expected = -sum(
                float(log_probabilities[b, t - 1, labels[b, t]])
                for t in range(1, 9) if labels[b, t] != IGNORE
            )  # fmt: skip
            assert float(output[name][b]) == pytest.approx(expected, abs=1e-4)
    for view in (0, 1):  # the head begins as 1
        vectors = base.pool(batch["pair_input_ids"][view], batch["pair_attention_mask"][view])
        torch.testing.assert_close(output.pair_vectors[view], vectors)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_dropout_works_on_sentences_and_not_on_text(architecture):
    plain = make_model(architecture=architecture, attention_dropout=0.5)
    model = objectives_class_for(type(plain))(plain.config).train()
    model.tokenizer = plain.tokenizer
    batch = {"input_ids": torch.randint(3, 350, (2, 12), generator=GENERATOR)}
    batch["span_ids"] = torch.zeros(2, 12, dtype=torch.long)
    batch["span_ids"][:, 4:7] = 1
    batch["msg_labels"] = batch["input_ids"].where(batch["span_ids"] > 0, IGNORE)
    batch["pair_input_ids"] = torch.randint(3, 350, (2, 3, 8), generator=GENERATOR)
    batch["pair_attention_mask"] = torch.ones_like(batch["pair_input_ids"])
    one, two = model(**batch), model(**batch)
    model.eval()
    calm = model(**batch)
    assert torch.equal(one.msg, calm.msg)
    assert torch.equal(two.msg, calm.msg)
    assert not torch.allclose(one.pair_vectors, two.pair_vectors, rtol=0.01)
    assert not torch.allclose(one.pair_vectors, calm.pair_vectors, rtol=0.01)


@pytest.mark.parametrize("chunk", [1, 3])
def test_gradcache_equals_plain_in_loss_and_gradient_with_dropout(tmp_path, chunk):
    """Chunks draw dropout in order, so the plain pass is cut into the same rows, shortest first."""
    model = training_model(tmp_path, lora_r=4, lora_dropout=0.2, attention_dropout=0.1).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=GENERATOR)
    ids = torch.randint(3, 350, (3, 4, 6), generator=GENERATOR)
    mask = torch.ones_like(ids)
    mask[1, 2, 4:] = 0

    def loss_and_gradients(**arguments):
        torch.manual_seed(7)
        if arguments:
            vectors = model(pair_input_ids=ids, pair_attention_mask=mask, **arguments).pair_vectors
        else:
            inner = model.get_base_model()
            order = mask.sum(-1).flatten().argsort(stable=True)
            parts = (part.flatten(0, 1)[order].split(chunk) for part in (ids, mask))
            vectors = torch.cat([inner.projection(inner.pool(*row)) for row in zip(*parts)])
            vectors = vectors[order.argsort()].unflatten(0, (3, 4))
        loss = info_nce(vectors[0], vectors[1:].flatten(0, 1), 0.1)
        model.zero_grad()
        loss.backward()
        return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain, gradients = loss_and_gradients()
    cached, cached_gradients = loss_and_gradients(pair_chunk=chunk)
    torch.testing.assert_close(cached, plain)
    assert gradients.keys() == cached_gradients.keys() and len(gradients) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(cached_gradients[name], gradient, atol=1e-6, rtol=1e-4)
    again, _ = loss_and_gradients(pair_chunk=2)  # other dropout: the test sees it
    assert abs(float(again - plain)) > 1e-4


def test_divergence_is_from_the_model_without_its_adapter(tmp_path):
    base = make_model()
    model = training_model(tmp_path, base, lora_r=4).eval()
    ids = torch.randint(3, 350, (2, 9), generator=GENERATOR)
    span_ids = torch.ones_like(ids)
    ntp = ids.clone()
    ntp[0] = IGNORE
    ntp[:, 0] = IGNORE
    batch = {"input_ids": ids, "span_ids": span_ids, "ntp_labels": ntp, "divergence": True}
    assert model(**batch).divergence.tolist() == [0, 0]  # a fresh adapter is nothing
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1, generator=GENERATOR)
    output = model(**batch)
    own = model.get_base_model()(input_ids=ids, span_ids=span_ids).logits.log_softmax(-1)
    other = base(input_ids=ids).logits.log_softmax(-1)
    kl = (other.exp() * (other - own)).sum(-1)[1, :-1].sum()
    assert output.divergence[0] == 0
    torch.testing.assert_close(output.divergence[1], kl, atol=1e-4, rtol=1e-4)
    output.divergence.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)


def test_the_training_model_is_the_base_and_the_adapter_begins_as_nothing(tmp_path):
    base = make_model()
    ids = torch.randint(3, 350, (1, 6), generator=GENERATOR)
    expected = base(input_ids=ids, span_ids=torch.zeros_like(ids)).logits
    model = training_model(tmp_path, base, lora_r=4).eval()
    assert torch.equal(model(input_ids=ids, span_ids=torch.zeros_like(ids)).logits, expected)
    trainable = {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"lora_A", "lora_B", "modules_to_save"}
    projection = model.get_base_model().projection.weight
    assert torch.equal(projection, torch.eye(len(projection)))


def test_bad_model_arguments(tmp_path):
    with pytest.raises(ValueError, match="dtype is 'int3'"):
        training_model(tmp_path, dtype="int3")
    with pytest.raises(ValueError, match="set lora_r"):
        training_model(tmp_path, load_in_4bit=True, lora_r=0)


def test_start_token_is_the_one_with_the_lowest_perplexity(base_model):
    """DESIGN: SmolLM2's documents were separated by <|endoftext|>, id 0."""
    texts = [
        "The steam engine was improved by James Watt, who added a separate condenser to it.",
        "In many countries the school year begins in autumn and ends in early summer.",
    ]
    token_id, perplexities = choose_start_token(base_model, texts, length=12)
    assert set(perplexities) == {"none", "<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    by_hand = {}
    for name, first in (("<|endoftext|>", [0]), ("none", [])):
        losses = []
        for text in texts:
            ids = base_model.tokenizer(text)["input_ids"][:12]
            scores = base_model(torch.tensor([first + ids])).logits[0].log_softmax(-1)
            losses += [-scores[len(first) + t - 1, ids[t]].item() for t in range(1, 12)]
        by_hand[name] = math.exp(sum(losses) / len(losses))
    assert perplexities["none"] == pytest.approx(by_hand["none"], rel=1e-3)
    assert perplexities["<|endoftext|>"] == pytest.approx(by_hand["<|endoftext|>"], rel=1e-3)
    assert (
        min(perplexities.values())
        == perplexities[
            "none" if token_id is None else base_model.tokenizer.convert_ids_to_tokens(token_id)
        ]
    )
    with pytest.raises(ValueError, match="give longer texts"):
        choose_start_token(base_model, ["short"])


def test_a_mask_that_is_several_tokens_is_refused():
    with pytest.raises(ValueError, match=r"mask_token is '<mask>', which is \d+ tokens"):
        single_token_id(make_model().tokenizer, "<mask>", "mask_token")


def test_a_named_token_is_the_one_inside_a_text_or_a_control_token():
    tokenizer = make_spaced_tokenizer()
    for name in (",", "</s>", "▁and"):
        text = name.replace("▁", " ")
        token_id = tokenizer.convert_tokens_to_ids(name)
        assert single_token_id(tokenizer, text, "mask_token") == token_id


def test_the_class_can_be_made_from_a_config():
    model = MagnetLlamaForObjectives(make_model().config)
    assert torch.equal(model.projection.weight, torch.eye(model.config.hidden_size))


def test_position_ids_reach_the_model(tmp_path):
    """A jump behind a span changes what is predicted there as it does in a plain forward pass."""
    model = training_model(tmp_path)
    tiny = make_model()
    ids = torch.randint(3, 340, (1, 20), generator=GENERATOR)
    spans = torch.zeros_like(ids)
    spans[:, 8:12] = 1
    labels = torch.where(spans > 0, ids, IGNORE)
    position = torch.arange(20)[None] + 30 * (torch.arange(20) >= 12)
    found = model(input_ids=ids, span_ids=spans, msg_labels=labels, position_ids=position).msg
    logits = tiny(input_ids=ids, span_ids=spans, position_ids=position).logits[0, 7:11]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 8:12], reduction="sum")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    plain = model(input_ids=ids, span_ids=spans, msg_labels=labels).msg
    assert abs(plain - found).item() > 1e-3


def test_a_run_keeps_the_pooling_and_the_start_of_a_magnet_folder(tmp_path):
    """Unless it names others; of another model they are the paper's."""
    model = make_model()
    model.config.magnet = {"pooling": "mean", "start_in_encode": False}
    model.save_pretrained(tmp_path / "folder")
    place = str(tmp_path / "folder")
    for name, asked, expected in (
        ("kept", {}, ("mean", False)),
        ("changed", {"pooling": "end", "start_in_encode": True}, ("end", True)),
    ):
        prepare_base(ModelArguments(model=place, **asked), [], tmp_path / name)
        settings = load_magnet(tmp_path / name).magnet_settings
        assert (settings.pooling, settings.start_in_encode) == expected
