"""What a GPU gives to choose from: the attention backend of `encode`, the cache of `infill`."""

import time
from functools import partial
from typing import Any

from .encode import BATCH
from .infill import Jobs as InfillJobs
from .infill import contexts
from .report import Row, timings_of
from .setup import Setup, Sizes, finished
from .texts import dealt
from .timing import Answer, Comparison, DifferentResultsError, firsts, measure, same_vectors

CACHES = ("static", "dynamic")


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
    with setup.ways({"attention": "benchmarks.attention:Jobs"}) as started:
        run = started["attention"]
        encode = {
            backend: [
                partial(run, vectors=True, way="encode", texts=part, backend=backend)
                for part in texts
            ]
            for backend in sizes.backends
        }
        infill = {
            cache: [partial(run, way="cached", cache=cache, **job)] * sizes.rounds
            for cache in CACHES
        }
        timings = measure(
            [
                Comparison("encode", encode, same_vectors(setup.tolerance), firsts(encode)),
                Comparison(
                    "infill",
                    infill,
                    same_tokens if setup.dtype == "float32" else None,  # bf16 has ties
                    firsts(infill),
                ),
            ],
            setup.bar,
        )
    return {"timings": timings}


def rows(found: dict[str, Any], sizes: Sizes) -> list[Row]:
    """The table's rows."""
    timings, (first, second) = timings_of(found), sizes.backends
    encode = f"encode, mixed, {second}: seconds; {first}"
    infill = "infill, static cache: ms per token; dynamic cache"
    return [
        Row.compared(encode, timings["encode"], (second, first)),
        Row.compared(infill, timings["infill"], CACHES, "per_token", 1e3),
    ]
