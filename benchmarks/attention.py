"""What a GPU gives to choose from: the attention backend of `encode`, the cache of `infill`."""

import time
from functools import partial
from typing import Any

from .encode import BATCH
from .infill import Jobs as InfillJobs
from .infill import contexts
from .report import Row
from .setup import Setup, Sizes, finished, load
from .texts import dealt
from .timing import Answer, Comparison, DifferentResultsError, measure, same_vectors

CACHES = ("static", "dynamic")


def ways(model: str, device: str, dtype: str):
    """Both, on one model; the job names one."""
    jobs = Jobs(load(model, device, dtype), device)
    return lambda way, **job: getattr(jobs, way)(**job)


class Jobs(InfillJobs):
    """A method a way."""

    def encode(self, texts: list[str], backend: str) -> Answer:
        """`model.encode` under an attention backend."""
        self.model.set_attn_implementation(backend)
        begin = time.perf_counter()
        vectors = self.model.encode(texts, batch_size=BATCH)
        finished(self.device)
        return {"seconds": time.perf_counter() - begin, "vectors": vectors}

    def cached(self, before, behind, length: int, cache: str) -> Answer:
        """`model.infill` with a kind of cache; `generate` compiles the forward of a static one."""
        self.greedy = {
            "do_sample": False,
            "suppress_tokens": [self.model.magnet_settings.end_token_id],
            "cache_implementation": cache if cache != "dynamic" else None,
        }
        return self.infill(before, behind, length)


def same_tokens(answers: dict[str, Answer]) -> None:
    """Raise unless both caches write the same."""
    static, dynamic = (answers[cache]["tokens"] for cache in CACHES)
    if static != dynamic:
        raise DifferentResultsError(f"the static cache gives {static}, the dynamic one {dynamic}")


def measure_part(setup: Setup) -> dict[str, Any]:
    """`timings` as `timing.measure` gives them."""
    sizes = setup.sizes
    texts = dealt(setup.texts.some("mixed", sizes.sentences), sizes.rounds)
    half = sizes.context // 2
    ((before, behind),) = contexts(setup, 1, [half, half])
    job = {"before": [before], "behind": [behind], "length": sizes.new_tokens}
    with setup.ways({"attention": "benchmarks.attention:ways"}) as started:
        run = started["attention"]
        encode = {
            backend: [
                partial(run, vectors=True, way="encode", texts=part, backend=backend)
                for part in texts
            ]
            for backend in sizes.backends
        }
        infill = {cache: partial(run, way="cached", cache=cache, **job) for cache in CACHES}
        timings = measure(
            [
                Comparison(
                    "encode",
                    encode,
                    check=same_vectors(setup.tolerance),
                    warm=[calls[0] for calls in encode.values()],
                ),
                Comparison(
                    "infill",
                    {cache: [call] * sizes.rounds for cache, call in infill.items()},
                    check=same_tokens if setup.dtype == "float32" else None,  # bf16 has ties
                    warm=list(infill.values()),
                ),
            ],
            setup.bar,
        )
    for answers in timings["infill"].values():
        for answer in answers:
            answer.pop("tokens", None)
    return {"timings": timings}


def rows(found: dict[str, Any] | None, sizes: Sizes) -> list[Row]:
    """The table's rows; None where it was not measured."""
    first, second = sizes.backends
    made = []
    for name, figure, scale, label, ways_ in (
        ("encode", "seconds", 1, f"encode, mixed, {second}: seconds; {first}", (second, first)),
        ("infill", "per_token", 1e3, "infill, static cache: ms per token; dynamic cache", CACHES),
    ):
        if found is None:
            made.append(Row.missing(label))
            continue
        ours, others = (
            [scale * given[figure] for given in found["timings"][name][way]] for way in ways_
        )
        made.append(Row.of_rounds(label, ours, others))
    return made
