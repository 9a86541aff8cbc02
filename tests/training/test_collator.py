"""Spans, masks and prompts as section 3.2 and appendix A have them."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_model

from modeling_magnet import MagnetSettings
from modeling_magnet.masking import check_span_ids
from modeling_magnet.training.arguments import DataArguments
from modeling_magnet.training.collator import IGNORE, MagnetCollator, cut_block
from modeling_magnet.training.data import Item

MASK = 349


def make_collator(**arguments) -> MagnetCollator:
    return MagnetCollator(
        tokenizer=make_model().tokenizer,
        settings=MagnetSettings(start_token_id=0, end_token_id=1, max_length=256),
        mask_token_id=MASK,
        vocab_size=350,
        arguments=DataArguments(**arguments),
        seed=0,
        items_per_step=4,
    )


def items(count, length=512, pairs=0):
    blocks = np.random.default_rng(0).integers(3, MASK, size=(count, length), dtype=np.int32)
    made = [(f"The cat {i}.", f"A cat {i}!") for i in range(pairs)]
    return [Item(i, block, None, made) for i, block in enumerate(blocks)]


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(8, 200), spans=st.integers(1, 3), shortest=st.integers(1, 6),
    longest=st.integers(6, 128), all_span=st.sampled_from([0.0, 0.5, 1.0]),
    documents=st.integers(1, 4),
)  # fmt: skip
def test_any_lengths(length, spans, shortest, longest, all_span, documents):
    collate = make_collator(
        max_spans=spans,
        min_span_length=shortest,
        max_span_length=longest,
        all_span_fraction=all_span,
    )
    originals = items(4, length)
    starts = np.zeros(length, dtype=bool)
    if documents > 1:
        starts[1 :: -(-length // documents)] = True
        for item in originals:
            item.document_ids = starts.cumsum().astype(np.int32)
    batch = collate(originals)
    span_ids, msg, mntp = batch["span_ids"], batch["msg_labels"], batch["mntp_labels"]
    check_span_ids(span_ids, 4, length)
    tokens = torch.tensor(np.stack([item.block for item in originals])).long()
    assert (span_ids[:, 0] == 0).all()
    starts = torch.from_numpy(starts)
    all_rows = (span_ids[:, 1:] == 1).all(dim=1)
    labels = torch.where((span_ids > 0) & ~starts, tokens, IGNORE)  # a document's first: none
    assert torch.equal(msg, torch.where(all_rows[:, None], IGNORE, labels))
    assert torch.equal(batch["ntp_labels"], torch.where(all_rows[:, None], labels, IGNORE))
    if length > 20:  # a shorter block may be one drawn span
        assert all_rows.float().mean() == all_span
    assert torch.equal(
        batch["input_ids"][span_ids > 0], tokens[span_ids > 0]
    )  # spans stay as they are
    selected = mntp != IGNORE
    assert torch.equal(mntp[selected], tokens[selected])
    assert not (selected & (span_ids > 0)).any()
    assert not selected[:, 0].any() and not selected[:, starts].any()
    assert not (selected[:, 1:] & (span_ids[:, :-1] > 0)).any()
    assert torch.equal(batch["input_ids"][~selected], tokens[~selected])
    # the output before a span's first token is a context token's
    starts = (span_ids[:, 1:] > 0) & (span_ids[:, 1:] != span_ids[:, :-1])
    assert (span_ids[:, :-1][starts] == 0).all()
    if all_span == 1:
        assert (span_ids[:, 1:] == 1).all() and not selected.any()


def test_the_paper_s_shares():
    batch = make_collator()(items(400))
    tokens = torch.tensor(np.stack([item.block for item in items(400)])).long()
    span_ids = batch["span_ids"]
    selected = batch["mntp_labels"] != IGNORE
    context = (span_ids == 0).sum()
    assert selected.sum() / context == pytest.approx(0.2, abs=0.005)
    inputs = batch["input_ids"][selected]
    assert (inputs == MASK).float().mean() == pytest.approx(0.8, abs=0.01)
    assert (inputs == tokens[selected]).float().mean() == pytest.approx(0.1, abs=0.01)
    lengths, counts = [], Counter()
    for row in span_ids:
        ids, sizes = row.unique(return_counts=True)
        lengths += sizes[ids > 0].tolist()
        counts[int(ids.max())] += 1
    assert min(lengths) == 4 and max(lengths) == 128
    assert set(counts) == {1, 2} and min(counts.values()) > 150


def test_what_is_drawn_depends_on_seed_and_item_alone():
    collate = make_collator()
    together = collate(items(6, pairs=2))
    alone = [collate([item]) for item in items(6, pairs=2)]
    for name in ("input_ids", "span_ids", "mntp_labels", "msg_labels", "ntp_labels"):
        assert torch.equal(together[name], torch.cat([batch[name] for batch in alone]))
    other = make_collator()
    other.seed = 1
    assert not torch.equal(other(items(6))["input_ids"], together["input_ids"])


def test_pairs_come_with_prompts_sentences_first():
    collate = make_collator(other_prompt_fraction=0.0)
    batch = collate(items(2, pairs=3))
    texts = [
        collate.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(
            batch["pair_input_ids"].flatten(0, 1), batch["pair_attention_mask"].flatten(0, 1)
        )
    ]
    prompt = "Given the sentence, find its representation: "
    assert (
        texts
        == [prompt + f"The cat {i}." for i in (0, 1, 2)] * 2
        + [prompt + f"A cat {i}!" for i in (0, 1, 2)] * 2
    )


def prompts_of(collate, items):
    batch = collate(items)
    return {
        collate.tokenizer.decode(row[mask.bool()])
        .removesuffix("The cat 0.")
        .removesuffix("A cat 0!")
        for row, mask in zip(
            batch["pair_input_ids"].flatten(0, 1), batch["pair_attention_mask"].flatten(0, 1)
        )
    }


def test_prompts_vary_by_step_and_are_one_a_step():
    """A prompt that differs within a step would tell which sentences belong together."""
    collate = make_collator(other_prompt_fraction=0.5)
    steps = [items(800, length=40, pairs=1)[i : i + 4] for i in range(0, 800, 4)]
    drawn = [prompts_of(collate, step) for step in steps]
    assert all(len(prompts) == 1 for prompts in drawn)
    halves = [prompts_of(collate, step[2:]) for step in steps]  # another process, or accumulation
    assert halves == drawn
    counts = Counter(prompts.pop() for prompts in drawn)
    assert set(counts) == {*collate.settings.prompts.values(), ""}
    assert counts[collate.settings.prompt_text(None, None)] / 200 == pytest.approx(0.5, abs=0.1)
    assert counts[""] / 200 == pytest.approx(0.25, abs=0.1)


def test_long_pairs_are_cut_to_pair_length():
    collate = make_collator(pair_length=20)
    item = Item(0, np.arange(40, dtype=np.int32), None, [("harbour " * 99, "b")])
    assert collate([item])["pair_input_ids"].shape == (2, 1, 18)  # start and end token come on top


def test_a_control_token_in_a_pair_is_text():
    pairs = [("A cat</s>", "A </s>cat")]
    block = items(1)[0].block
    for split in (True, False):
        collate = make_collator()
        collate.settings = replace(collate.settings, split_special_tokens=split)
        ids = collate([Item(0, block, None, pairs)])["pair_input_ids"]
        assert (1 in ids) is not split


def test_one_column_is_its_own_positive_and_a_third_is_a_hard_negative():
    collate = make_collator()
    for views, made in ((2, [("a",)]), (2, [("a", "b")]), (3, [("a", "b", "c")])):
        batch = collate([Item(0, None, None, made), Item(1, None, None, made)])
        assert set(batch) == {"pair_input_ids", "pair_attention_mask"}
        assert batch["pair_input_ids"].shape[:2] == (views, 2)
        same = torch.equal(batch["pair_input_ids"][0], batch["pair_input_ids"][1])
        assert same == (len(made[0]) == 1)


def test_held_out_items_are_the_same_under_any_training_setting():
    batches = []
    for settings_ in ({}, {"all_span_fraction": 0.5, "other_prompt_fraction": 1.0}):
        held_out = items(8, pairs=1)
        for item in held_out:
            item.held_out = True
        batches.append(make_collator(**settings_)(held_out))
    for name, value in batches[0].items():
        assert torch.equal(batches[1][name], value)


@pytest.mark.parametrize("documents", [False, True])
def test_spans_that_end_stand_in_longer_gaps(documents):
    """The end token behind each span is predicted like its other tokens; then positions jump."""
    collate = make_collator(end_of_span_fraction=0.5, max_gap_length=60, max_span_length=20)
    originals = items(200, length=80)
    if documents:
        for item in originals:
            item.document_ids = (np.arange(80) >= 37).astype(np.int32)
    plain = make_collator(max_span_length=20)(originals)
    batch = collate(originals)
    ended, slacks = 0, []
    for row, item in enumerate(originals):
        spans, position = batch["span_ids"][row], batch["position_ids"][row]
        if torch.equal(spans, plain["span_ids"][row]):
            assert torch.equal(position, torch.arange(80))
            assert not (batch["msg_labels"][row] == 1).any()
            continue
        ended += 1
        ends = (spans > 0) & (batch["input_ids"][row] == 1)  # blocks are drawn without token 1
        last = torch.nn.functional.pad((spans[1:] != spans[:-1]) & (spans[:-1] > 0), (0, 1))
        assert torch.equal(ends[:-1], last[:-1])  # one behind each span, unless pushed over the end
        assert torch.equal(batch["msg_labels"][row][ends], torch.ones(int(ends.sum())).long())
        kept = batch["input_ids"][row].clone()
        kept = torch.where(batch["mntp_labels"][row] != IGNORE, batch["mntp_labels"][row], kept)
        kept = kept[~ends]
        assert torch.equal(kept, torch.from_numpy(item.block).long()[: len(kept)])
        assert torch.equal(spans[~ends], plain["span_ids"][row][: len(kept)])
        steps = position.diff()
        assert (steps[~ends[:-1]] == 1).all() and (steps[ends[:-1]] >= 1).all()
        for k in spans[ends].tolist():
            size = int((spans == k).sum())
            place = int(ends.nonzero()[spans[ends] == k][0])
            if place < 79:
                slacks.append(int(steps[place]) - 1)
                assert size + slacks[-1] <= 60
        if documents:
            assert torch.equal(
                batch["document_ids"][row][~ends], (torch.arange(len(kept)) >= 37).long()
            )
    assert 80 < ended < 120
    assert min(slacks) == 0 and max(slacks) > 40 and 15 < np.mean(slacks) < 35
    assert make_collator(end_of_span_fraction=1.0)(originals[:1])["position_ids"].shape == (1, 80)


def step_of(collate, step, length=520):
    """The batch of a step of four items, whose tokens are numbered."""
    blocks = np.arange(4 * length, dtype=np.int32).reshape(4, length) % 300 + 10
    return collate([Item(4 * step + n, block, None, []) for n, block in enumerate(blocks)]), blocks


def test_a_step_has_one_of_several_lengths_and_always_as_many_tokens():
    collate = make_collator(cut_blocks=[1, 2, 4, 8], block_length=520, all_span_fraction=0.25)
    shapes, longest = Counter(), {}
    for step in range(200):
        batch, blocks = step_of(collate, step)
        rows, length = batch["input_ids"].shape
        assert rows * length == 4 * 520
        shapes[length] += 1
        clean = torch.where(
            batch["mntp_labels"] != IGNORE, batch["mntp_labels"], batch["input_ids"]
        )
        parts = rows // 4
        for row, tokens in enumerate(clean):  # each part behind its block's first token
            block, first = blocks[row // parts], 1 + row % parts * (length - 1)
            assert tokens.tolist() == [block[0], *block[first : first + length - 1]]
        spans = batch["msg_labels"] != IGNORE
        most = max(int((batch["span_ids"][spans.any(1)] == k).sum(1).max()) for k in (1, 2))
        longest[length] = max(most, longest.get(length, 0))
    assert set(shapes) == {520, 260, 130, 65} and min(shapes.values()) > 30
    assert all(
        length / 6 < longest[length] <= length / 4 for length in shapes
    )  # 128 of 520 at most


def test_every_process_and_micro_batch_of_a_step_has_its_length():
    collate = make_collator(cut_blocks=[1, 2, 4, 8], block_length=520)
    for step in range(20):
        whole, blocks = step_of(collate, step)
        halves = [
            collate([Item(4 * step + n, blocks[n], None, []) for n in half])
            for half in ((0, 1), (2, 3))
        ]
        for name, value in whole.items():
            assert torch.equal(torch.cat([half[name] for half in halves]), value), name


@pytest.mark.parametrize("start", [0, None])
@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(20, 90),
    parts=st.integers(2, 5),
    ends=st.sets(st.integers(2, 88), max_size=4),
)
def test_a_cut_block_loses_no_token_but_the_rest(start, length, parts, ends):
    own = [] if start is None else [start]
    tokens = np.arange(length, dtype=np.int32) + 10
    starts = np.isin(np.arange(length), list(ends))
    documents = starts.cumsum().astype(np.int32)
    tokens[[0, *np.flatnonzero(starts)] if own else []] = start or 0
    together = cut_block(tokens, None, parts, bool(own))
    apart = cut_block(tokens, documents, parts, bool(own))
    text = length // parts - len(own)  # tokens of a part beside its start token
    for number in range(parts):
        first = len(own) + number * text
        part, none = together[number]
        assert part.tolist() == [*own, *tokens[first : first + text]] and none is None
        brought = bool(own) and number > 0 and starts[first]  # its document's own start token
        places = np.arange(first, first + text) + brought
        part, of = apart[number]
        assert part.tolist() == [*own, *tokens[places]]
        assert of.tolist() == [*own, *(documents[places] - documents[first])]


def test_held_out_blocks_are_not_cut():
    held_out = items(4)
    for item in held_out:
        item.held_out = True
    batch = make_collator(cut_blocks=[8])(held_out)
    assert batch["input_ids"].shape == (4, 512)


def test_held_out_spans_do_not_end():
    held_out = items(8)
    for item in held_out:
        item.held_out = True
    batch = make_collator(end_of_span_fraction=1.0)(held_out)
    assert torch.equal(batch["position_ids"], torch.arange(512).expand(8, -1))
    assert torch.equal(batch["span_ids"], make_collator()(held_out)["span_ids"])
