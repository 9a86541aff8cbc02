"""A CUDA device computes what the CPU does: masks, encode, infill, the static cache, without an adapter."""

import copy

import numpy as np
import pytest
import torch
from test_adapters import adapted
from tiny import ARCHITECTURES, SENTENCES, SLIDING, make_model

BACKENDS = ("eager", "sdpa", "flex_attention")
CLOSE = 2e-4
"""The most that logits may differ: sums are added in another order."""

PREFIX, SUFFIX = "The old harbour was", " before the boats came home."
GREEDY = {"do_sample": False, "suppress_tokens": [1]}


def batch(side: str) -> dict[str, torch.Tensor]:
    """Three texts of other lengths with spans, padded at one side."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (3, 24), generator=generator)
    mask, span_ids = torch.ones_like(ids), torch.zeros_like(ids)
    for row, length in enumerate((24, 17, 9)):
        own = slice(24 - length, 24) if side == "left" else slice(0, length)
        mask[row] = 0
        mask[row, own] = 1
        first = own.start + length // 3
        span_ids[row, first : first + length // 3] = 1
    return {"input_ids": ids, "attention_mask": mask, "span_ids": span_ids}


def on_cuda(model):
    return copy.deepcopy(model).cuda()


@pytest.fixture(params=[name for name in ARCHITECTURES if name not in SLIDING])
def both(request):
    """A model of each architecture on the CPU, and the same on CUDA."""
    model = make_model(architecture=request.param)
    return model, on_cuda(model)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_are_those_of_the_cpu(backend, side):
    model = make_model()
    model.set_attn_implementation("eager")
    inputs = batch(side)
    there = on_cuda(model)
    there.set_attn_implementation(backend)
    with torch.no_grad():
        expected = model(**inputs).logits
        logits = there(**{name: value.cuda() for name, value in inputs.items()}).logits.cpu()
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(logits[real], expected[real], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_column_is_nan_in_half_precision(backend, dtype, side):
    """A padding query has itself to see; without that some kernels answer NaN."""
    there = on_cuda(make_model()).to(dtype)
    there.set_attn_implementation(backend)
    with torch.no_grad():
        logits = there(**{name: value.cuda() for name, value in batch(side).items()}).logits
    assert logits.isfinite().all()


def test_encode_gives_the_vectors_of_the_cpu(both):
    here, there = both
    for encode in ("encode", "encode_tokens", "encode_words"):
        ours, theirs = (getattr(model, encode)(SENTENCES) for model in (there, here))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=CLOSE)
    devices = here.encode(SENTENCES, device=["cuda:0", "cpu"])
    np.testing.assert_allclose(devices, here.encode(SENTENCES), atol=CLOSE)


@pytest.mark.parametrize(
    "arguments",
    [
        {"span_length": 6},
        {"span_length": 6, "cache_implementation": "static"},
        {"span_length": 6, "num_beams": 3},
        {},
    ],
    ids=str,
)
def test_infill_writes_what_the_cpu_writes(both, arguments):
    here, there = both
    plain = {name: value for name, value in arguments.items() if name != "cache_implementation"}
    expected = here.infill([PREFIX, "A cat"], [SUFFIX, " here."], **GREEDY, **plain)
    assert there.infill([PREFIX, "A cat"], [SUFFIX, " here."], **GREEDY, **arguments) == expected


def test_scores_are_those_of_the_cpu(both):
    scores = [model.score(PREFIX, " quiet", SUFFIX).sum for model in both]
    assert scores[0] == pytest.approx(scores[1], abs=CLOSE)


def test_blanks_share_a_reading_on_cuda_too(both):
    parts = [PREFIX, " boats", SUFFIX]
    written = [model.infill_blanks(parts, span_length=4, **GREEDY) for model in both]
    assert written[0] == written[1]


def test_without_its_adapter_a_model_is_its_base():
    model, base = on_cuda(adapted()), on_cuda(make_model())
    ids = torch.randint(3, 300, (1, 8)).cuda()
    with torch.no_grad(), model.without_adapter():
        assert torch.equal(model(input_ids=ids).logits, base(input_ids=ids).logits)
        np.testing.assert_array_equal(model.encode(SENTENCES), base.encode(SENTENCES))
