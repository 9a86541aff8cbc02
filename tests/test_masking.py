"""The hybrid mask is the paper's. Every check is also run against masks that it must reject."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import allowed
from tiny import ARCHITECTURES, WITHOUT_SDPA, make_model, plain
from transformers import modeling_flash_attention_utils

from modeling_magnet import masking
from modeling_magnet.compat import CACHE
from modeling_magnet.masking import attention_arguments, extend_span_ids, hybrid_mask_function

SPAN_IDS = torch.tensor(
    [
        [0, 0, 1, 1, 1, 0, 0, 2, 2, 2, 0],
        [0, 1, 1, 0, 2, 2, 2, 2, 0, 0, 0],
    ]
)
LENGTH = SPAN_IDS.shape[1]
PADDED = {
    "no padding": torch.ones_like(SPAN_IDS),
    "left padding": torch.ones_like(SPAN_IDS).index_fill(1, torch.tensor([0]), 0),
    "right padding": torch.ones_like(SPAN_IDS).index_fill(1, torch.tensor([10]), 0),
}


def inputs(padding: str):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 350, SPAN_IDS.shape, generator=generator)
    return ids, PADDED[padding]


# --- the eight checks -----------------------------------------------------------------------------


def check_triple_loop(backend, padding, architecture):
    """1. The mask equals the oracle's, for every real query."""
    model = make_model(architecture=architecture, attn_implementation=backend)
    _, real = inputs(padding)
    mask = attention_arguments(model.config, SPAN_IDS, LENGTH, torch.float32, attention_mask=real)[
        "attention_mask"
    ][:, 0]
    if mask.dtype != torch.bool:
        mask = mask == 0
    expected = allowed(SPAN_IDS, real)
    queries = real.bool()
    assert torch.equal(mask[queries], expected[queries])


def check_attention_weights(backend, padding, architecture):
    """2. The weights of a one-layer eager model are positive exactly where the oracle allows."""
    model = make_model(architecture=architecture, num_hidden_layers=1, attn_implementation="eager")
    ids, real = inputs(padding)
    weights = model(
        input_ids=ids, attention_mask=real, span_ids=SPAN_IDS, output_attentions=True
    ).attentions[0]
    expected = allowed(SPAN_IDS, real)[:, None].expand_as(weights)
    queries = real.bool()[:, None, :].expand(weights.shape[:3])
    assert torch.equal((weights > 0)[queries], expected[queries])


def embedding_jacobian(model, ids, real):
    """(batch, query, key): does the last hidden state of a query depend on a key's embedding."""
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    hidden = model(
        inputs_embeds=embeddings, attention_mask=real, span_ids=SPAN_IDS, output_hidden_states=True
    ).hidden_states[-1]
    depends = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool)
    direction = torch.randn(hidden.shape[-1], generator=torch.Generator().manual_seed(2))
    for q in range(ids.shape[1]):
        (gradient,) = torch.autograd.grad(
            (hidden[:, q] @ direction).sum(), embeddings, retain_graph=True
        )
        depends[:, q] = gradient.abs().sum(-1) > 0
    return depends


def check_jacobian(backend, padding, architecture):
    """3. What depends on what after two layers is two steps of the oracle."""
    model = make_model(architecture=architecture, attn_implementation=backend)
    ids, real = inputs(padding)
    one = allowed(SPAN_IDS, real) | torch.eye(LENGTH, dtype=torch.bool)
    two = (one.float() @ one.float()) > 0
    queries = real.bool()
    assert torch.equal(embedding_jacobian(model, ids, real)[queries], two[queries])


def check_leak(backend, padding, architecture):
    """4. The output that predicts a span token knows nothing of it or of what comes after it."""
    model = make_model(architecture=architecture, attn_implementation=backend)
    ids, real = inputs(padding)
    depends = embedding_jacobian(model, ids, real)
    for b in range(len(ids)):
        for t in range(1, LENGTH):
            if SPAN_IDS[b, t] > 0 and real[b, t - 1]:
                same_span_later = SPAN_IDS[b] == SPAN_IDS[b, t]
                same_span_later[:t] = False
                assert not depends[b, t - 1][same_span_later].any()


def check_all_one_span(backend, padding, architecture):
    """5. One span over everything is the plain causal model, bit for bit."""
    model = make_model(architecture=architecture, attn_implementation=backend)
    ids, real = inputs(padding)
    logits = model(input_ids=ids, attention_mask=real, span_ids=torch.ones_like(ids)).logits
    expected = plain(model)(input_ids=ids, attention_mask=real).logits
    assert torch.equal(logits[real.bool()], expected[real.bool()])


def check_all_context(backend, padding, architecture):
    """6. Context everywhere is the stock model with `is_causal=False`, bit for bit."""
    model = make_model(architecture=architecture, attn_implementation=backend)
    ids, real = inputs(padding)
    logits = model(input_ids=ids, attention_mask=real, span_ids=torch.zeros_like(ids)).logits
    expected = plain(model)(input_ids=ids, attention_mask=real, is_causal=False).logits
    assert torch.equal(logits[real.bool()], expected[real.bool()])


def check_edited_span(backend, padding, architecture):
    """7. Writing another span changes neither the context nor the other span."""
    model = make_model(architecture=architecture, attn_implementation=backend)
    ids, real = inputs(padding)
    edited = torch.where(SPAN_IDS == 1, (ids + 7) % 350, ids)
    before, after = (
        model(input_ids=x, attention_mask=real, span_ids=SPAN_IDS).logits for x in (ids, edited)
    )
    untouched = (SPAN_IDS != 1) & real.bool()
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.equal(before[SPAN_IDS == 1], after[SPAN_IDS == 1])


def check_cached(backend, padding, architecture):
    """8. Prefill of [suffix, prefix] and cached decoding equals the span in its place."""
    model = make_model(architecture=architecture)
    model.double()  # eager rounds its softmax to float32
    ids, _ = inputs("no padding")
    prefix, span, suffix = ids[:1, :4], ids[:1, 4:8], ids[:1, 8:]
    pad = {"no padding": 0, "left padding": 2, "right padding": 0}[padding]
    behind = torch.tensor([[0] * 4 + [1] * 4 + [0] * suffix.shape[1]])
    in_place = model(input_ids=torch.cat([prefix, span, suffix], 1), span_ids=behind).logits
    prompt = torch.cat([torch.zeros(1, pad, dtype=torch.long), suffix, prefix], 1)
    positions = torch.cat([torch.zeros(pad), torch.arange(8, 8 + suffix.shape[1]), torch.arange(4)])
    real = torch.tensor([[0] * pad + [1] * (prompt.shape[1] - pad)])
    cached = model(
        input_ids=prompt,
        position_ids=positions.long()[None],
        attention_mask=real,
        span_ids=torch.zeros_like(prompt),
        use_cache=True,
    )
    logits = [cached.logits[:, -1]]
    for t in range(3):
        real = torch.cat([real, torch.ones(1, 1, dtype=torch.long)], 1)
        map_so_far = extend_span_ids(torch.zeros_like(prompt), prompt.shape[1] + t + 1)
        cached = model(
            input_ids=span[:, t : t + 1],
            position_ids=torch.tensor([[4 + t]]),
            attention_mask=real,
            cache=cached[CACHE],
            span_ids=map_so_far,
        )
        logits.append(cached.logits[:, -1])
    exact = model.config._attn_implementation == "sdpa"
    atol = 1e-10 if exact else 1e-5
    torch.testing.assert_close(torch.stack(logits, 1), in_place[:, 3:7], atol=atol, rtol=0)


CHECKS = {
    "triple loop": check_triple_loop,
    "attention weights": check_attention_weights,
    "jacobian": check_jacobian,
    "leak": check_leak,
    "all one span": check_all_one_span,
    "all context": check_all_context,
    "edited span": check_edited_span,
    "cached": check_cached,
}

# --- masks that are wrong -------------------------------------------------------------------------


def wrong(rule):
    """A mask function made of `rule(span of q, span of k, q, k)`, padding as it should be."""

    def function(span_ids, padding_mask=None, document_ids=None):
        def predicate(batch, head, q, k):
            seen = rule(span_ids[batch, q], span_ids[batch, k], q, k)
            return seen if padding_mask is None else (seen & padding_mask[batch, k]) | (q == k)

        return predicate

    return function


def sees_padding(span_ids, padding_mask=None, document_ids=None):
    return hybrid_mask_function(span_ids, None)


WRONG = {
    "map ignored": wrong(lambda sq, sk, q, k: k <= q),
    "everything sees everything": wrong(lambda sq, sk, q, k: (k >= 0) & (q >= 0)),
    "span sees itself whole": wrong(lambda sq, sk, q, k: (sk == 0) | (sq == sk)),
    "causal or same block": wrong(lambda sq, sk, q, k: (k <= q) | ((sk == 0) & (sq == 0))),
    "span sees earlier spans": wrong(lambda sq, sk, q, k: (sk == 0) | ((sq > 0) & (k <= q))),
    "span sees left context only": wrong(
        lambda sq, sk, q, k: ((sk == 0) & ((sq == 0) | (k <= q))) | ((sq == sk) & (k <= q))
    ),
    "context is causal": wrong(
        lambda sq, sk, q, k: ((sk == 0) & ((sq > 0) | (k <= q))) | ((sq == sk) & (k <= q))
    ),
    "span one token ahead": wrong(lambda sq, sk, q, k: (sk == 0) | ((sq == sk) & (k <= q + 1))),
    "span misses the token before": wrong(
        lambda sq, sk, q, k: (sk == 0) | ((sq == sk) & ((k <= q - 2) | (k == q)))
    ),
    "padding is seen": sees_padding,
}

CATCHES = {
    "triple loop": list(WRONG),
    "attention weights": list(WRONG),
    "jacobian": [name for name in WRONG if name != "span sees left context only"],
    "leak": ["everything sees everything", "span sees itself whole", "span one token ahead"],
    "all one span": ["span sees itself whole", "span one token ahead", "padding is seen"],
    "all context": ["map ignored", "context is causal", "padding is seen"],
    "edited span": ["map ignored", "causal or same block", "span sees earlier spans"],
    "cached": ["map ignored", "span sees itself whole", "span sees left context only"],
}


@pytest.mark.parametrize("padding", PADDED)
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("check", CHECKS)
def test_mask(check, backend, padding):
    CHECKS[check](backend, padding, "llama")


@pytest.mark.parametrize(
    ("check", "backend"),
    [
        ("attention weights", "eager"),
        ("jacobian", "sdpa"),
        ("all one span", "sdpa"),
        ("all one span", "eager"),
        ("all context", "sdpa"),
        ("all context", "eager"),
        ("cached", "sdpa"),
    ],
)
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "llama"])
def test_mask_of_other_architectures(architecture, check, backend):
    """Those that see what an architecture makes of the mask."""
    if architecture in WITHOUT_SDPA and backend == "sdpa":
        backend = "eager"
    CHECKS[check](backend, "left padding", architecture)


@pytest.mark.parametrize(
    ("check", "mistake"), [(check, mistake) for check in CATCHES for mistake in CATCHES[check]]
)
def test_a_wrong_mask_is_caught(check, mistake, monkeypatch):
    monkeypatch.setattr(masking, "hybrid_mask_function", WRONG[mistake])
    padding = "left padding" if mistake == "padding is seen" else "no padding"
    with pytest.raises(AssertionError):
        CHECKS[check]("sdpa", padding, "llama")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 3), st.data())
def test_any_map_equals_the_oracle(runs, pad, data):
    """Any sequence of spans and context, any length, any left padding."""
    numbered, row = 0, []
    for run in runs:  # 0 is a context token, n a new span of n tokens
        numbered += run > 0
        row += [0] if run == 0 else [numbered] * run
    pad = min(pad, len(row) - 1)
    span_ids = torch.tensor([row])
    real = torch.tensor([[0] * pad + [1] * (len(row) - pad)])
    model = make_model(num_hidden_layers=1)
    mask = attention_arguments(model.config, span_ids, len(row), torch.float32, real)
    queries = real.bool()
    assert torch.equal(mask["attention_mask"][:, 0][queries], allowed(span_ids, real)[queries])
    assert mask["attention_mask"].any(-1).all()  # no query is without a key, padding included


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_documents_of_a_row_do_not_see_each_other(backend):
    """A row of two documents gives each what it gets alone, spans across their border included."""
    model = make_model()
    model.set_attn_implementation(backend)
    ids = torch.randint(3, 350, (1, 9), generator=torch.Generator().manual_seed(0))
    span_ids = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 2, 2]])
    document_ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    together = model._span_states(ids, span_ids, document_ids=document_ids)
    for part in (slice(0, 4), slice(4, 9)):
        alone = model._span_states(ids[:, part], span_ids[:, part])
        torch.testing.assert_close(together[:, part], alone, atol=1e-5, rtol=1e-5)
    mixed = model._span_states(ids, span_ids)
    assert (mixed - together).abs().max() > 0.1
    with pytest.raises(ValueError, match=r"document_ids has shape \(1, 8\)"):
        model._span_states(ids, span_ids, document_ids=document_ids[:, :8])


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="flex_attention compiles with g++ on the CPU"
)
def test_flex_attention_gets_the_same_mask():
    model = make_model()
    model.config._attn_implementation = "flex_attention"
    real = PADDED["left padding"]
    block_mask = attention_arguments(
        model.config, SPAN_IDS, LENGTH, torch.float32, attention_mask=real
    )["attention_mask"]
    expected = allowed(SPAN_IDS, real)
    for b in range(2):
        for q in range(int(real[b].argmax()), LENGTH):
            for k in range(LENGTH):
                seen = block_mask.mask_mod(*map(torch.tensor, (b, 0, q, k)))
                assert bool(seen) == bool(expected[b, q, k])


def test_a_map_under_a_flash_backend_raises_unless_it_needs_no_mask():
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="flash_attention_2"):
        model(input_ids=torch.zeros_like(SPAN_IDS), span_ids=SPAN_IDS)
    zeros, real = torch.zeros_like(SPAN_IDS), torch.ones_like(SPAN_IDS)
    with pytest.raises(ValueError, match="flash_attention_2"):
        model._span_states(zeros, zeros, document_ids=zeros)
    everything = attention_arguments(model.config, zeros, LENGTH, torch.float32, real)
    assert everything == {"attention_mask": real, "is_causal": False}
    assert attention_arguments(model.config, real, LENGTH, torch.float32, real) == {
        "attention_mask": real
    }


def flash_by_definition(query, key, value, softmax_scale=None, causal=False, **_):
    """What the flash kernel computes: (batch, length, heads, size), causal at the lower right."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
    mask = mask.tril(key.shape[2] - query.shape[2]) if causal else mask
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=softmax_scale, enable_gqa=True
    ).transpose(1, 2)


def packed_by_definition(query, key, value, cu_seqlens_q, cu_seqlens_k, **arguments):
    """The kernel of packed texts: (tokens, heads, size), each text by itself."""
    texts = zip(cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist(), strict=True)
    queries, keys = zip(*texts, strict=True)
    parts = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
    return torch.cat([flash_by_definition(*(x[None] for x in p), **arguments)[0] for p in parts])


@pytest.fixture
def flash(monkeypatch):
    """Flash attention, its kernels replaced by what they compute."""
    monkeypatch.setattr(
        modeling_flash_attention_utils,
        "_lazy_imports",
        lambda *_, **__: (
            flash_by_definition, packed_by_definition, None,
            modeling_flash_attention_utils._pad_input, modeling_flash_attention_utils._unpad_input,
        ),
    )  # fmt: skip
    monkeypatch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)


def test_a_flash_backend_reads_one_text_as_one_whatever_its_positions(flash):
    """Positions that jump are packed texts to it; infilling's do, and its suffix was hardly read."""
    model = make_model()
    model.generation_config.eos_token_id = 10**6
    one, two = ("The old", " boats came home."), ("A cat", " on the stones, and then the rain.")
    several = [list(pair) for pair in zip(one, two, strict=True)]
    expected = [model.infill(*one, span_length=6), model.infill(*several, span_length=6)]
    vectors = model.encode([one[1], two[1]])
    model.config._attn_implementation = "flash_attention_2"
    assert [model.infill(*one, span_length=6), model.infill(*several, span_length=6)] == expected
    torch.testing.assert_close(torch.tensor(model.encode(one[1])), torch.tensor(vectors[0]))
    torch.testing.assert_close(torch.tensor(model.encode([one[1], two[1]])), torch.tensor(vectors))


def test_a_flash_backend_is_told_of_context_without_a_word_in_the_config(flash):
    """transformers would write `is_causal` there, which other threads read while they generate."""
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"
    ids = torch.randint(3, 350, (2, 9))
    causal = model(input_ids=ids).logits
    told = []
    model.model.layers[0].register_forward_pre_hook(
        lambda *_: told.append(hasattr(model.config, "is_causal"))
    )
    both_ways = model(input_ids=ids, span_ids=torch.zeros_like(ids)).logits
    assert not torch.allclose(both_ways, causal)
    model.encode("The old")
    model.infill_blanks(["The", " boats", "."], span_length=2)  # one prefill for both
    model.infill("The old", " boats", span_length=2)
    assert len(told) > 4 and not any(told)
    assert torch.equal(model(input_ids=ids).logits, causal)


@pytest.mark.parametrize(
    ("span_ids", "error", "message"),
    [
        (torch.zeros(1, 4, dtype=torch.long), ValueError, r"\(1, 4\).*\(1, 5\)"),
        (torch.zeros(2, 5, dtype=torch.long), ValueError, r"\(2, 5\).*\(1, 5\)"),
        (torch.zeros(5, dtype=torch.long), ValueError, r"\(5,\)"),
        (torch.zeros(1, 5), TypeError, "float32"),
        (torch.zeros(1, 5, dtype=torch.bool), TypeError, "bool"),
        ([[0, 0, 1, 1, 0]], TypeError, "list"),
        (torch.zeros(1, 5, dtype=torch.uint16), TypeError, "uint16"),
        (torch.zeros(1, 5, dtype=torch.long).to_sparse(), TypeError, "sparse"),
        (torch.tensor([[0, -1, 0, 0, 0]]), ValueError, "-1"),
        (torch.tensor([[1, 0, 1, 0, 0]]), ValueError, "span 1 of row 0 is in 2 pieces"),
    ],
)
def test_a_bad_map_is_refused(tiny, span_ids, error, message):
    with pytest.raises(error, match=message):
        tiny(input_ids=torch.full((1, 5), 7), span_ids=span_ids)


def test_an_attention_mask_of_another_length_is_refused(tiny):
    ids = torch.full((1, 5), 7)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(1, 4\)"):
        tiny(input_ids=ids, attention_mask=torch.ones(1, 4), span_ids=torch.zeros_like(ids))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        ([[1, 1, 1, 1, 1]], TypeError, "attention_mask is list"),
        (torch.tensor([[1, 1, 2, 1, 1]]), ValueError, "attention_mask holds 2"),
        (torch.tensor([[0.0, float("-inf"), 0, 0, 0]]), ValueError, "attention_mask holds -inf"),
        (torch.ones(1, 5, dtype=torch.uint16), TypeError, "uint16"),
    ],
)
def test_an_attention_mask_that_is_none_is_refused(tiny, mask, error, message):
    ids = torch.full((1, 5), 7)
    with pytest.raises(error, match=message):
        tiny(input_ids=ids, attention_mask=mask, span_ids=torch.zeros_like(ids))
