"""The losses against a computation of their own, in plain loops."""

import math

import pytest
import torch
from oracle import allowed
from tiny import make_model
from torch import nn

from training.arguments import ModelArguments
from training.base import choose_start_token, convert, for_objectives, single_token_id
from training.collator import IGNORE
from training.objectives import MagnetLlamaForObjectives, info_nce, labelled_cross_entropy

GENERATOR = torch.Generator().manual_seed(0)


def test_labelled_cross_entropy_equals_a_loop():
    hidden = torch.randn(3, 7, 5, dtype=torch.float64, generator=GENERATOR)
    head = nn.Linear(5, 11).double()
    labels = torch.randint(0, 11, (3, 7), generator=GENERATOR)
    labels[torch.rand(3, 7, generator=GENERATOR) < 0.6] = IGNORE
    expected, count = 0.0, 0
    for b in range(3):
        for t in range(1, 7):
            if labels[b, t] != IGNORE:
                scores = head(hidden[b, t - 1]).tolist()
                total = math.log(sum(math.exp(s) for s in scores))
                expected += total - scores[labels[b, t]]
                count += 1
    assert count > 3
    assert float(labelled_cross_entropy(hidden, labels, head)) == pytest.approx(expected, abs=1e-5)
    nothing = torch.full((3, 7), IGNORE)
    assert float(labelled_cross_entropy(hidden, nothing, head)) == 0


@pytest.mark.parametrize("offset", [0, 2])
def test_info_nce_equals_a_loop(offset):
    vectors = torch.randn(4, 6, generator=GENERATOR)
    positives = torch.randn(4 + offset, 6, generator=GENERATOR)
    expected = 0.0
    for i in range(4):
        similarity = [
            float(vectors[i] @ p) / float(vectors[i].norm() * p.norm()) / 0.07 for p in positives
        ]
        expected += math.log(sum(map(math.exp, similarity))) - similarity[i + offset]
    assert float(info_nce(vectors, positives, 0.07, offset)) == pytest.approx(
        expected / 4, abs=1e-5
    )


def test_one_pass_gives_all_parts():
    """Against the stock decoder under the oracle's mask and all logits, and against `pool`."""
    base = make_model()
    model = for_objectives(base, ModelArguments(lora_r=0)).eval()
    ids = torch.randint(3, 350, (2, 9), generator=GENERATOR)
    span_ids = torch.tensor([[0, 0, 1, 1, 0, 0, 2, 2, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0]])
    mntp = torch.full_like(ids, IGNORE)
    mntp[0, 1] = mntp[1, 6] = 17
    msg = torch.where(span_ids > 0, ids, IGNORE)
    pairs = torch.randint(3, 350, (4, 5), generator=GENERATOR)
    real = torch.ones_like(pairs)
    real[1, 3:] = 0
    output = model(
        input_ids=ids, span_ids=span_ids, mntp_labels=mntp, msg_labels=msg,
        pair_input_ids=pairs, pair_attention_mask=real,
    )  # fmt: skip
    mask = allowed(span_ids, torch.ones_like(ids))[:, None]
    logits = super(type(base), base).forward(input_ids=ids, attention_mask=mask).logits
    log_probabilities = logits.log_softmax(-1)
    for labels, value in ((mntp, output.mntp_sum), (msg, output.msg_sum)):
        expected = -sum(
            float(log_probabilities[b, t - 1, labels[b, t]])
            for b in range(2) for t in range(1, 9) if labels[b, t] != IGNORE
        )  # fmt: skip
        assert float(value) == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(output.pair_vectors, base.pool(pairs, real))  # the head begins as 1


def test_conversion_keeps_every_weight_and_the_adapter_begins_as_nothing():
    base = make_model()
    ids = torch.randint(3, 350, (1, 6), generator=GENERATOR)
    expected = base(input_ids=ids, span_ids=torch.zeros_like(ids)).logits
    model = for_objectives(base, ModelArguments(lora_r=4)).eval()
    assert torch.equal(model(input_ids=ids, span_ids=torch.zeros_like(ids)).logits, expected)
    trainable = {n.split(".")[-3] for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {"lora_A", "lora_B", "modules_to_save"}
    tied = make_model(tie_word_embeddings=True)
    moved = convert(tied, MagnetLlamaForObjectives)
    assert moved.lm_head.weight is moved.model.embed_tokens.weight


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
