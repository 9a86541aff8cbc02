"""`infill` and `infill_blanks`: cached decoding equals the span decoded in its place."""

import math

import numpy as np
import pytest
import torch
from tiny import ARCHITECTURES, make_model, plain
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    StoppingCriteria,
    TextIteratorStreamer,
    TextStreamer,
)

from modeling_magnet.compat import CACHE_NAMES
from modeling_magnet.layout import Layout, read_contexts
from modeling_magnet.lengths import GAP_FACTOR, SEAM_LENGTH, TOKENS_READ_BEFORE
from modeling_magnet.masking import sliding_window

NEVER = 10**6  # the id of no token
PREFIX, SUFFIX = "The old harbour was", " before the boats came home."


def ids_of(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def in_place(model, parts, gaps, blank, steps, pick=lambda logits: logits.argmax()):
    """Tokens and logits of one blank by an uncached loop over the text in its own order.

    The other blanks are gaps in the positions; this blank's tokens stand between the parts.
    """
    token_ids = [ids_of(model, part) for part in parts]
    token_ids[0] = [0, *token_ids[0]]
    starts, start = [], 0
    for part, gap in zip(token_ids, [*gaps, 0], strict=True):
        starts.append(start)
        start += len(part) + gap
    span, logits = [], []
    for _ in range(steps):
        ids, positions, span_ids = [], [], []
        for i, part in enumerate(token_ids):
            ids += part
            positions += range(starts[i], starts[i] + len(part))
            span_ids += [0] * len(part)
            if i == blank:
                last = len(ids) + len(span) - 1
                ids += span
                positions += range(starts[i] + len(part), starts[i] + len(part) + len(span))
                span_ids += [1] * len(span)
        row = model(
            input_ids=torch.tensor([ids]),
            position_ids=torch.tensor([positions]),
            span_ids=torch.tensor([span_ids]),
        ).logits[0, last]
        logits.append(row)
        span.append(int(pick(row)))
    return span, torch.stack(logits)


def spans_of(model, text_or_texts, **arguments):
    """The token ids that infill wrote."""
    prefix, suffix = text_or_texts
    return model.infill(prefix, suffix, return_dict_in_generate=True, **arguments)


@pytest.fixture
def endless():
    """A model whose end token cannot come, so that lengths are known."""
    return made_endless(make_model())


@pytest.fixture(params=ARCHITECTURES)
def any_endless(request):
    """The same of each architecture in turn."""
    return made_endless(make_model(architecture=request.param))


def made_endless(model):
    model.generation_config.eos_token_id = NEVER
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prompt_lookup_num_tokens": 3},
        {"num_beams": 1, "renormalize_logits": True},
    ],
    ids=lambda a: next(iter(a), "default"),
)
def test_greedy_tokens_equal_the_in_place_loop(endless, attention, arguments):
    endless.set_attn_implementation(attention)
    expected, _ = in_place(endless, [PREFIX, SUFFIX], [6], 0, 6)
    output = spans_of(endless, (PREFIX, SUFFIX), span_length=6, **arguments)
    assert output.sequences.tolist() == [expected]


def test_greedy_tokens_of_any_architecture(any_endless):
    """With sliding layers the caches of a model's layers differ in class."""
    expected, _ = in_place(any_endless, [PREFIX, SUFFIX], [6], 0, 6)
    for attention, arguments in (
        ("sdpa", {}),
        ("sdpa", {"prompt_lookup_num_tokens": 3}),
        ("eager", {"cache_implementation": "static"}),
    ):
        if any_endless._supports_sdpa:
            any_endless.set_attn_implementation(attention)
        output = spans_of(any_endless, (PREFIX, SUFFIX), span_length=6, **arguments)
        assert output.sequences.tolist() == [expected]


def test_an_assistant_of_the_same_class_changes_nothing(endless):
    expected, _ = in_place(endless, [PREFIX, SUFFIX], [6], 0, 6)
    assistant = make_model(seed=1)
    output = spans_of(endless, (PREFIX, SUFFIX), span_length=6, assistant_model=assistant)
    assert output.sequences.tolist() == [expected]
    with pytest.raises(ValueError, match="span_ids"):
        llama = LlamaForCausalLM(endless.config)
        endless.infill(PREFIX, SUFFIX, span_length=6, assistant_model=llama)


def test_float64_logits_equal_the_in_place_loop(any_endless):
    """Read off the output head: `generate` itself hands logits out in float32."""
    endless = any_endless
    endless.double()
    _, expected = in_place(endless, [PREFIX, SUFFIX], [6], 0, 6)
    logits = []
    endless.lm_head.register_forward_hook(lambda module, x, output: logits.append(output[:, -1]))
    endless.infill(PREFIX, SUFFIX, span_length=6)
    logits = torch.cat(logits)
    if cap := getattr(endless.config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    exact = endless.config._attn_implementation == "sdpa"  # eager takes its softmax in float32
    torch.testing.assert_close(logits, expected, atol=1e-10 if exact else 1e-4, rtol=0)


def test_a_batch_is_left_padded_and_equals_one_by_one(endless):
    prefixes = [PREFIX, "A cat", "", "She counted twelve lanterns, and then"]
    suffixes = [SUFFIX, "", " near the door.", "!"]
    expected = [in_place(endless, [p, s], [5], 0, 5)[0] for p, s in zip(prefixes, suffixes)]
    output = spans_of(endless, (prefixes, suffixes), span_length=5)
    assert output.sequences.tolist() == expected
    texts = endless.infill(prefixes, suffixes, span_length=5)
    assert texts == [endless.infill(p, s, span_length=5) for p, s in zip(prefixes, suffixes)]
    mixed = endless.infill(prefixes, suffixes, span_length=[5, 2, 3, 1])
    alone = [
        endless.infill(p, s, span_length=n) for p, s, n in zip(prefixes, suffixes, [5, 2, 3, 1])
    ]
    assert mixed == alone


def test_empty_prefix_and_suffix(endless):
    for prefix, suffix in (("", SUFFIX), (PREFIX, ""), ("", "")):
        expected, _ = in_place(endless, [prefix, suffix], [4], 0, 4)
        output = spans_of(endless, (prefix, suffix), span_length=4)
        assert output.sequences.tolist() == [expected]


def test_beam_scores_are_in_place_log_probabilities(endless):
    output = spans_of(
        endless, (PREFIX, SUFFIX), span_length=4, num_beams=3, num_return_sequences=3,
        output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    prefix, suffix = [0, *ids_of(endless, PREFIX)], ids_of(endless, SUFFIX)
    for span, score in zip(output.sequences, output.sequences_scores, strict=True):
        ids = torch.tensor([[*prefix, *span.tolist(), *suffix]])
        span_ids = torch.tensor([[0] * len(prefix) + [1] * 4 + [0] * len(suffix)])
        logits = endless(input_ids=ids, span_ids=span_ids).logits[0].log_softmax(-1)
        first = len(prefix) - 1
        total = sum(logits[first + t, span[t]] for t in range(4)).item()
        assert total == pytest.approx(float(score), abs=1e-4)
    assert len(output.texts[0][0]) == 3


def test_beams_with_several_lengths(endless):
    pairs = [PREFIX, "A cat"], [SUFFIX, " door."]
    together = endless.infill(*pairs, span_length=[2, 5], num_beams=3)
    alone = [endless.infill(p, s, span_length=n, num_beams=3) for p, s, n in zip(*pairs, [2, 5])]
    assert together == alone


def test_sampling_with_a_seed(endless):
    def draw(seed):
        torch.manual_seed(seed)
        return endless.infill(PREFIX, SUFFIX, span_length=6, do_sample=True, num_return_sequences=3)

    torch.manual_seed(0)
    expected, _ = in_place(
        endless, [PREFIX, SUFFIX], [6], 0, 6, lambda logits: logits.softmax(-1).multinomial(1)
    )
    torch.manual_seed(0)
    one = {"do_sample": True, "top_k": 0, "span_length": 6}
    assert spans_of(endless, (PREFIX, SUFFIX), **one).sequences.tolist() == [expected]
    assert draw(0) == draw(0)
    assert draw(0) != draw(1)
    assert len(draw(0)) == 3


@pytest.mark.parametrize("lengths", [3, [3, 1, 5]])
def test_several_blanks_equal_one_blank_with_gaps_elsewhere(endless, lengths):
    parts = ["The old", " was quiet", " the boats", " home."]
    gaps = lengths if isinstance(lengths, list) else [lengths] * 3
    output = endless.infill_blanks(parts, span_length=lengths)
    for blank in range(3):
        span, _ = in_place(endless, parts, gaps, blank, gaps[blank])
        tail = ids_of(endless, parts[blank])[-1:]
        both, before = (
            endless.tokenizer.decode(ids, skip_special_tokens=True) for ids in (tail + span, tail)
        )
        assert output[blank] == both[len(before) :]
    several = endless.infill_blanks([parts, parts[:3]], span_length=3)
    assert [len(text) for text in several] == [3, 2]
    if lengths == 3:
        assert several[0] == output


def test_blanks_and_samples_read_their_context_once(any_endless):
    """One prefill for all of them, and what is written is what one prefill each gives."""
    read = []
    embedding = any_endless.get_input_embeddings()
    embedding.register_forward_hook(lambda module, x, output: read.append(x[0].numel()))
    text = ["The old", " was quiet before", " came home."]
    texts, each = [text, ["A", " or B", "."]], {"cache_implementation": "static"}
    for parts, arguments in (
        (text, {}),
        (texts, {}),
        (texts, {"num_beams": 3, "num_return_sequences": 2}),
        (texts, {"num_return_sequences": 3, "do_sample": True}),
        ([["", ""], text], {"num_return_sequences": 3, "do_sample": True}),
        (["", ""], {"num_return_sequences": 3, "do_sample": True}),
    ):
        torch.manual_seed(0)
        shared = any_endless.infill_blanks(parts, span_length=4, **arguments)
        torch.manual_seed(0)
        assert any_endless.infill_blanks(parts, span_length=4, **arguments, **each) == shared
    context = 1 + sum(len(ids_of(any_endless, part)) for part in text)
    for arguments, rows in (({}, 2), ({"num_return_sequences": 3, "do_sample": True}, 6)):
        read.clear()
        any_endless.infill_blanks(text, span_length=4, **arguments)
        if sliding_window(any_endless.config) is None:
            assert sum(read) == context + 4 * rows
        else:
            assert sum(read) == context * rows + 3 * rows


def test_streaming(endless):
    expected = endless.infill(PREFIX, SUFFIX, span_length=6)
    for skip_prompt in (True, False):

        class Collect(TextStreamer):
            text = ""

            def on_finalized_text(self, text, stream_end=False):
                self.text += text

        streamer = Collect(endless.tokenizer, skip_prompt=skip_prompt)
        endless.infill(PREFIX, SUFFIX, span_length=6, streamer=streamer)
        assert streamer.text == expected
    streamer = Collect(endless.tokenizer)
    endless.infill(PREFIX, SUFFIX, streamer=streamer)  # without a length, all that fills the gap
    uncut = endless.infill(PREFIX, SUFFIX, return_dict_in_generate=True).texts[0][0]
    assert streamer.text == uncut
    iterator = TextIteratorStreamer(endless.tokenizer, skip_prompt=True)
    endless.infill(PREFIX, SUFFIX, span_length=6, streamer=iterator)
    assert "".join(iterator) == expected


def test_an_end_token_ends_early(endless):
    span, _ = in_place(endless, [PREFIX, SUFFIX], [6], 0, 6)
    end = next(token for token in span if token != span[0])
    written = endless.infill(PREFIX, SUFFIX, span_length=6, eos_token_id=end)
    before = span[: span.index(end)]
    assert ids_of(endless, written) == before or written == endless.tokenizer.decode(before)


def test_max_new_tokens_bounds_what_is_written_not_the_gap(endless):
    expected, _ = in_place(endless, [PREFIX, SUFFIX], [8], 0, 3)
    output = spans_of(endless, (PREFIX, SUFFIX), span_length=8, max_new_tokens=3)
    assert output.sequences.tolist() == [expected]


def test_readings_of_a_context_with_another_gap_share_the_first_layer_alone(endless):
    """A longer gap turns the suffix's first keys, and with them all that later layers compute."""
    parts = [[0, *ids_of(endless, PREFIX)], ids_of(endless, SUFFIX)]
    one, other = (read_contexts(endless, [Layout(parts, [gap])]) for gap in (3, 7))
    before = len(parts[0])
    first, second = (caches for caches in zip(one.layers, other.layers, strict=True))
    assert torch.equal(first[0].values, first[1].values)
    assert torch.equal(first[0].keys[:, :, :before], first[1].keys[:, :, :before])
    lengths = [layer.keys[:, :, before:].norm(dim=-1) for layer in first]
    torch.testing.assert_close(*lengths)  # the same but for their angle
    for side in (slice(0, before), slice(before, None)):
        moved = (
            (second[0].values - second[1].values)[:, :, side].abs().amax((0, 1, 3))
        )  # (columns,)
        assert moved.min() > 1e-3


SENTENCES_AROUND = (
    "A cat sleeps on the warm stones. The old harbour was",
    " quiet. She counted lanterns.",
)


def filled(model, **arguments):
    """What fills the gap of a guessed length, before it is cut."""
    output = spans_of(model, SENTENCES_AROUND, **arguments)
    return output.sequences[0].tolist()


def test_without_a_length_the_gap_is_one_of_a_sentence_and_some_more(endless):
    tokens = 1 + sum(len(ids_of(endless, part)) for part in SENTENCES_AROUND)
    length = math.ceil(GAP_FACTOR * tokens / 4)  # two whole sentences and two halves
    given = spans_of(endless, SENTENCES_AROUND, span_length=length).sequences[0].tolist()
    assert len(given) == length and filled(endless) == given
    assert filled(endless, max_new_tokens=5) == filled(endless, span_length=5)
    longest = endless.infill(PREFIX, "", max_new_tokens=12)  # nothing after it has to fit
    assert longest == endless.infill(PREFIX, "", span_length=12)
    blanks = endless.infill_blanks([PREFIX, " boats", " home."], max_new_tokens=8)
    assert len(blanks) == 2 and all(blanks)


@pytest.mark.parametrize("suffix", [SENTENCES_AROUND[1], "."])
def test_what_fills_a_guessed_gap_is_cut_where_the_suffix_reads_on_best(any_endless, suffix):
    """The cut is that of a search in which each is read anew."""
    prefix = SENTENCES_AROUND[0]
    after = ids_of(any_endless, suffix)[:SEAM_LENGTH]
    before = [0, *ids_of(any_endless, prefix)[-TOKENS_READ_BEFORE:]]
    output = spans_of(any_endless, (prefix, suffix))
    span = output.sequences[0].tolist()
    scores = {}
    for kept in range(math.ceil(len(span) / 2), len(span) + 1):
        ids = torch.tensor([before + span[:kept] + after])
        each = any_endless(input_ids=ids).logits[0, :-1].log_softmax(-1)
        each = each.gather(1, ids[0, 1:, None])[len(before) + kept - 2 :]
        scores[kept] = float(each.mean())
    expected = max(scores, key=scores.get)
    assert any_endless._best_cut([0, *ids_of(any_endless, prefix)], span, after) == expected
    (cut,) = any_endless.infill([prefix], [suffix], return_scores=True)
    assert cut.score.token_ids == span[:expected]
    assert cut.ended == ("seam" if expected < len(span) else "length")


def test_what_ends_by_itself_is_not_cut(endless):
    span = filled(endless)
    end = next(token for token in span if token != span[0])
    written = endless.infill(*SENTENCES_AROUND, eos_token_id=end, return_scores=True)
    assert written.score.token_ids == span[: span.index(end)] and written.ended == "end token"


def test_a_space_at_the_end_of_the_prefix_is_left_to_the_span(endless):
    with_space = endless.infill(PREFIX + " ", SUFFIX, span_length=6)
    assert with_space == endless.infill(PREFIX, SUFFIX, span_length=6).lstrip(" ")


def test_generation_config_is_honoured(endless):
    config = GenerationConfig(num_beams=3, max_new_tokens=99)
    by_config = endless.infill(PREFIX, SUFFIX, span_length=4, generation_config=config)
    assert by_config == endless.infill(PREFIX, SUFFIX, span_length=4, num_beams=3)


def test_what_is_longer_than_the_checkpoint_was_trained_on_is_said_once_a_call(tiny, recwarn):
    """Context and gap together, as they count for `max_length`."""
    context = sum(
        len(tiny.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in ("A cat", "b.")
    )
    tiny.config.magnet = {"trained_length": 1 + context + 5}
    tiny.infill("A cat", "b.", span_length=5)
    assert not [warning for warning in recwarn if "adapted on" in str(warning.message)]
    with pytest.warns(
        UserWarning, match=f"has {context + 7} tokens, .* up to {context + 6}"
    ) as said:
        tiny.infill(["A cat", "A cat"], ["b.", "b."], span_length=[5, 6])
    assert len(said) == 1


def test_a_text_with_marks_is_the_parts_around_them(endless):
    """`___`, as on the command line; singular in, singular out."""
    parts = [["The ", " sat on ", "."], ["She counted ", ", and then the rain began!"]]
    texts = ["___".join(text) for text in parts]
    assert endless.infill(texts[0], span_length=[2, 3]) == endless.infill_blanks(
        parts[0], span_length=[2, 3]
    )
    assert endless.infill(texts, span_length=2) == endless.infill_blanks(parts, span_length=2)
    (one,) = endless.infill(texts[1], span_length=2)
    assert one == endless.infill(*parts[1], span_length=2)
    with pytest.raises(ValueError, match="text 1 has no ___ and there is no suffix: mark what"):
        endless.infill([texts[0], "The cat."])


def test_no_texts(tiny):
    assert tiny.infill([], []) == []


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prefix": ["a"], "suffix": ["b", "c"]}, ValueError, "1 prefixes and 2 suffixes"),
        ({"prefix": "a", "suffix": 3}, TypeError, "int"),
        ({"span_length": 0}, ValueError, "span_length is 0"),
        ({"span_length": 2.5}, TypeError, "2.5"),
        ({"span_length": True}, TypeError, "span_length is True"),
        ({"span_length": "3"}, TypeError, "span_length is '3'"),
        ({"span_length": [2, 3]}, ValueError, "2 entries, but there are 1"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens is 0"),
        ({"max_new_tokens": 1.5}, TypeError, r"max_new_tokens is 1.5 \(float\)"),
        ({"generation_config": 3}, TypeError, "generation_config is int"),
        ({"span_length": 500}, ValueError, r"\d+ positions \(500 in gaps\), but the limit is 256"),
        ({"span_length": 4, "prefill_chunk_size": 2}, ValueError, "prefill_chunk_size"),
        ({"span_length": 4, "max_length": 20}, ValueError, "max_length counts the context"),
        ({"span_length": 4, "input_ids": None}, TypeError, "input_ids is set by infill"),
        ({"span_length": 4, "cache": None}, TypeError, "cache is set by infill"),
        (
            {"span_length": 4, "past_key_values": None},
            TypeError,
            "past_key_values is set by infill",
        ),
        ({"span_length": 4, "unknown": 1}, ValueError, "unknown"),
    ],
)
def test_bad_arguments(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny.infill(**({"prefix": PREFIX, "suffix": SUFFIX} | arguments))


@pytest.mark.parametrize(
    ("parts", "error"),
    [(None, TypeError), ("a ___ b", TypeError), (3, TypeError), ([1], ValueError)],
)
def test_parts_that_are_no_strings(tiny, parts, error):
    with pytest.raises(error, match="parts"):
        tiny.infill_blanks(parts)


def test_lengths_may_be_integers_of_numpy(endless):
    expected = endless.infill([PREFIX] * 2, [SUFFIX] * 2, span_length=[3, 5], max_new_tokens=4)
    lengths = np.array([3, 5])
    written = endless.infill([PREFIX] * 2, [SUFFIX] * 2, lengths, max_new_tokens=np.int64(4))
    assert written == expected


def test_a_generation_configs_max_new_tokens_counts(endless):
    config = GenerationConfig(max_new_tokens=3)
    written = endless.infill(PREFIX, SUFFIX, span_length=6, generation_config=config)
    assert written == endless.infill(PREFIX, SUFFIX, span_length=6, max_new_tokens=3)
    assert written != endless.infill(PREFIX, SUFFIX, span_length=6)


def test_a_checkpoint_that_returns_dicts_infills_texts(endless):
    expected = endless.infill(PREFIX, SUFFIX)
    endless.generation_config.return_dict_in_generate = True
    assert endless.infill(PREFIX, SUFFIX) == expected
    asked = endless.infill(PREFIX, SUFFIX, span_length=4, return_dict_in_generate=True)
    assert asked.texts == [[endless.infill(PREFIX, SUFFIX, span_length=4)]]


class AfterTokens(StoppingCriteria):
    """Ends row i after `counts[i]` new tokens."""

    def __init__(self, counts):
        self.counts, self.prompt = torch.tensor(counts), None

    def __call__(self, input_ids, scores, **kwargs):
        self.prompt = input_ids.shape[1] - 1 if self.prompt is None else self.prompt
        return input_ids.shape[1] - self.prompt >= self.counts


@pytest.mark.parametrize("end", [NEVER, None, 1])
@pytest.mark.parametrize("pad", [40, None])
def test_the_padding_of_a_row_that_stopped_early_is_no_text(endless, end, pad):
    """Stop strings and criteria end rows before others; the padding may be an ordinary token."""
    endless.generation_config.eos_token_id = end
    endless.generation_config.pad_token_id = pad
    pairs = [PREFIX, "A cat"], [SUFFIX, " on the stones."]
    for counts in ([2, 6], [6, 1]):
        written = endless.infill(
            *pairs, span_length=6, stopping_criteria=[AfterTokens(counts)], pad_token_id=pad
        )
        assert written == [
            endless.infill(p, s, span_length=6, max_new_tokens=n)
            for p, s, n in zip(*pairs, counts, strict=True)
        ]


def test_no_end_token_for_one_call(endless):
    """`None` is a value as in `generate`: none ends a span, and a criterion still does."""
    whole = endless.infill(PREFIX, SUFFIX, span_length=6)
    endless.generation_config.eos_token_id = ids_of(endless, whole)[2]
    arguments = {"span_length": 6, "eos_token_id": None}
    assert endless.infill(PREFIX, SUFFIX, **arguments) == whole
    pairs, rules = ([PREFIX, "A cat"], [SUFFIX, " on the stones."]), [AfterTokens([1, 6])]
    stopped = endless.infill(*pairs, **arguments, stopping_criteria=rules, return_scores=True)
    assert [len(one.score.token_ids) for one in stopped] == [1, 6]
    assert [one.ended for one in stopped] == ["stopped", "length"]


def test_why_a_span_ended(endless):
    """In a batch, where the padding of a row that was stopped is an end token."""
    pairs = [PREFIX, "A cat"], [SUFFIX, " on the stones."]
    endless.generation_config.eos_token_id = 1
    arguments = {"span_length": 6, "return_scores": True, "suppress_tokens": [1]}
    whole = endless.infill(*pairs, **arguments)
    assert [found.ended for found in whole] == ["length", "length"]
    rules = {"stopping_criteria": [AfterTokens([2, 6])]}
    stopped = endless.infill(*pairs, **arguments, **rules)
    assert [found.ended for found in stopped] == ["stopped", "length"]
    assert stopped[0].score.token_ids == whole[0].score.token_ids[:2]
    end = whole[0].score.token_ids[3]
    arguments |= {"eos_token_id": end, "suppress_tokens": []}
    ended = endless.infill(*pairs, **arguments)[0]
    first = whole[0].score.token_ids.index(end)
    assert ended.ended == "end token" and ended.score.token_ids == whole[0].score.token_ids[:first]
    string = endless.tokenizer.decode(whole[1].score.token_ids[:2])
    for given in ({"stop_strings": [string]}, {"max_time": 0.0}):
        found = endless.infill(*pairs, span_length=6, return_scores=True, **given)
        assert found[1].ended == "stopped"


def test_scores_equal_the_in_place_computation(any_endless):
    """Of the same model, whatever architecture, whatever else stands in the batch."""
    prefixes, middles = ["A cat", PREFIX], [" sleeps", " quiet for a while,"]
    suffixes = [" on the warm stones near the door.", SUFFIX]
    together = any_endless.score(prefixes, middles, suffixes)
    for prefix, middle, suffix, score in zip(prefixes, middles, suffixes, together, strict=True):
        span = ids_of(any_endless, middle)
        tokens = iter(span)
        _, logits = in_place(
            any_endless,
            [prefix, suffix],
            [len(span)],
            0,
            len(span),
            lambda row, tokens=tokens: next(tokens),
        )
        expected = logits.log_softmax(-1).gather(1, torch.tensor(span)[:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor(score.log_probabilities), expected, rtol=1e-4, atol=1e-4
        )
        assert score.token_ids == span
        assert score.sum == pytest.approx(sum(score.log_probabilities))
        assert score.mean == pytest.approx(score.sum / len(span))
        alone = any_endless.score(prefix, middle, suffix)
        assert alone.sum == pytest.approx(score.sum, rel=1e-4)
    assert any_endless.score([], [], []) == []


def test_a_space_moves_from_the_prefix_to_the_middle(endless):
    moved = endless.score(PREFIX + " ", "quiet", SUFFIX)
    assert moved == endless.score(PREFIX, " quiet", SUFFIX)


def test_infill_returns_the_scores_of_what_it_wrote(endless):
    """They are those of a decoding, though samples and beams are drawn by other figures."""
    output = spans_of(endless, (PREFIX, SUFFIX), span_length=6, output_logits=True)
    (row,) = output.sequences
    logits = torch.stack(output.logits)[:, 0].log_softmax(-1)  # (6, vocabulary)
    expected = logits.gather(1, row[:, None])[:, 0].tolist()
    found = endless.infill(PREFIX, SUFFIX, span_length=6, return_scores=True)
    assert found.text == endless.infill(PREFIX, SUFFIX, span_length=6)
    assert found.score.token_ids == row.tolist() and found.ended == "length"
    assert found.score.log_probabilities == pytest.approx(expected, abs=1e-4)
    for arguments in ({"num_beams": 3}, {"do_sample": True, "temperature": 2.0}):
        several = endless.infill_blanks(
            [PREFIX, " boats", SUFFIX],
            [3, 2],
            return_scores=True,
            num_return_sequences=2,
            **arguments,
        )
        assert [len(samples) for samples in several] == [2, 2]
        assert {len(found.score.token_ids) for found in several[1]} == {2}
    empty = endless.infill(
        PREFIX, SUFFIX, span_length=6, eos_token_id=int(row[0]), return_scores=True
    )
    assert empty.text == "" and empty.score.sum == 0 and math.isnan(empty.score.mean)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", "", "b"), ValueError, "middle 0 is ''"),
        (("a", 3, "b"), TypeError, "int"),
        ((["a"], ["b", "c"], ["d"]), ValueError, "1 prefixes, 2 middles and 1 suffixes"),
        (("a", "b" * 600, "c"), ValueError, r"the limit is 256"),
    ],
)
def test_bad_middles(tiny, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny.score(*arguments)


def test_bad_blanks(tiny):
    with pytest.raises(ValueError, match="n \\+ 1 strings"):
        tiny.infill_blanks(["only one"])
    with pytest.raises(ValueError, match="no text between blanks 0 and 1"):
        tiny.infill_blanks(["a", "", "b"], span_length=2)
    with pytest.raises(ValueError, match="3 entries, but there are 2 blanks"):
        tiny.infill_blanks(["a", "b", "c"], span_length=[1, 2, 3])


def test_a_gap_at_the_start_needs_a_start_token(tiny):
    tiny.config.magnet = {"start_token_id": None}
    with pytest.raises(ValueError, match="no start token"):
        tiny.infill("", SUFFIX, span_length=3)


def test_generate_refuses_to_read_a_map_in_chunks(tiny):
    ids = torch.randint(3, 300, (1, 8))
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        tiny.generate(ids, span_ids=torch.zeros_like(ids), prefill_chunk_size=3, max_new_tokens=2)


def test_infill_on_the_real_model_equals_the_in_place_loop(base_model):
    end = base_model.generation_config.eos_token_id
    base_model.generation_config.eos_token_id = NEVER
    try:
        parts = ["The capital of France is", " and it lies on the river Seine."]
        expected, _ = in_place(base_model, parts, [5], 0, 5)
        output = spans_of(base_model, parts, span_length=5)
        assert output.sequences.tolist() == [expected]
        beams = base_model.infill(*parts, span_length=5, num_beams=2)
        assert isinstance(beams, str)
    finally:
        base_model.generation_config.eos_token_id = end


def test_a_prompt_with_a_map_goes_on_as_an_open_span(any_tiny):
    """`generate(span_ids=...)`: zeros make a prefix language model, ones change nothing."""
    tiny = any_tiny
    ids = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(3))
    tiny.generation_config.eos_token_id = NEVER
    plain = tiny.generate(ids, max_new_tokens=5, do_sample=False)
    ones = tiny.generate(ids, span_ids=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert torch.equal(plain, ones)
    written = ids
    for _ in range(5):
        span_ids = torch.ones_like(written)
        span_ids[:, :7] = 0
        logits = tiny(input_ids=written, span_ids=span_ids).logits[:, -1]
        written = torch.cat([written, logits.argmax(-1, keepdim=True)], 1)
    zeros = tiny.generate(ids, span_ids=torch.zeros_like(ids), max_new_tokens=5, do_sample=False)
    assert torch.equal(zeros, written)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_generate_restarts_from_a_cache(any_tiny, name):
    """Under the name that the cache has in any release."""
    tiny = any_tiny
    ids = torch.randint(3, 300, (1, 7), generator=torch.Generator().manual_seed(3))
    tiny.generation_config.eos_token_id = NEVER
    span_ids = torch.zeros_like(ids)
    cache = DynamicCache(config=tiny.config)
    first = tiny.generate(ids, span_ids=span_ids, max_new_tokens=3, **{name: cache})
    again = tiny.generate(first, span_ids=span_ids, max_new_tokens=3, **{name: cache})
    whole = tiny.generate(ids, span_ids=span_ids, max_new_tokens=6)
    assert torch.equal(again, whole)


def test_a_map_that_is_not_the_prompts_is_refused(tiny):
    """A shorter one would turn the rest of the prompt into an open span."""
    ids = torch.randint(3, 300, (1, 8))
    for length in (5, 9):
        with pytest.raises(ValueError, match=rf"\(1, {length}\).*\(1, 8\)"):
            tiny.generate(ids, span_ids=torch.zeros(1, length, dtype=torch.long), max_new_tokens=2)
    with pytest.raises(ValueError, match=r"\(1, 8\).*\(2, 8\)"):
        tiny.generate(ids.repeat(2, 1), span_ids=torch.zeros_like(ids), max_new_tokens=2)
    with pytest.raises(TypeError, match="list"):
        tiny.generate(ids, span_ids=[[0] * 8], max_new_tokens=2)
    with pytest.raises(ValueError, match="attention_mask holds 7"):
        tiny.generate(ids, span_ids=torch.zeros_like(ids), attention_mask=ids * 0 + 7)
    with pytest.raises(ValueError, match="without input_ids"):
        tiny.generate(span_ids=torch.zeros_like(ids), max_new_tokens=2)


def test_a_plain_assistant_takes_no_map(tiny):
    ids = torch.randint(3, 300, (1, 8))
    with pytest.raises(ValueError, match="assistant_model is a LlamaForCausalLM"):
        tiny.generate(ids, span_ids=torch.zeros_like(ids), assistant_model=plain(tiny))


def test_embeddings_as_prompt_with_a_map(any_tiny):
    any_tiny.generation_config.eos_token_id = NEVER
    ids = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(3))
    arguments = {"span_ids": torch.zeros_like(ids), "max_new_tokens": 4, "do_sample": False}
    expected = any_tiny.generate(ids, **arguments)[:, 7:]
    embeddings = any_tiny.get_input_embeddings()(ids)
    assert torch.equal(any_tiny.generate(inputs_embeds=embeddings, **arguments), expected)
