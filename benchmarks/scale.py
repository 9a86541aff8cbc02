"""What the three jobs cost, by arithmetic, and what large ones would need: projections, no measurements.

    python -m benchmarks.scale
    python -m benchmarks.scale --peak 312 --memory 80 --bandwidth 2.0 --train 0.28 --encode 0.5

The formulae stand at the functions below; benchmarks/README.md has them in one place. The shares of the
card's peak that are reached (`--encode`, `--train`, `--decode`) are assumptions: put in what
`python -m benchmarks.run --suite gpu` measures.
"""

import argparse
from dataclasses import dataclass

from evaluation.common.writing import markdown

BF16 = 2
"""Bytes of a number in bfloat16."""

HOUR = 3600.0

USABLE = 0.9
"""Share of a card's memory for what is counted here; libraries and buffers want some too."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama; `layers`, `hidden` and so on are as in its config."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    @property
    def decoder(self) -> int:
        """Parameters of the decoder's matrices, which every token is multiplied with."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = 2 * self.hidden * queries + 2 * self.hidden * keys
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.hidden * self.vocab

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on all matrices of the decoder (Hu et al. 2021)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        sides += 3 * (self.hidden + self.intermediate)
        return self.layers * rank * sides


SHAPES = {
    "SmolLM2-135M": Shape(30, 576, 1536, 9, 3, 64, 49152),
    "Llama-3.2-1B": Shape(16, 2048, 8192, 32, 8, 64, 128256),
    "Llama-2-7B": Shape(32, 4096, 11008, 32, 32, 128, 32000),
    "Llama-3.1-8B": Shape(32, 4096, 14336, 32, 8, 128, 128256),
    "Llama-3.1-70B": Shape(80, 8192, 28672, 64, 8, 128, 128256),
}


def encode_flops(shape: Shape, length: int) -> float:
    """A token of a text of `length` tokens, read with both sides.

    2 a parameter (Kaplan et al. 2020, table 1), and 4 x layers x heads x head_dim x length for the
    scores and the weighted sum of attention: no half is masked away. No output head.
    """
    return 2 * shape.decoder + 4 * shape.layers * shape.heads * shape.head_dim * length


def train_flops(
    shape: Shape, length: int, labelled: float = 0.0, rank: int = 16, recompute: bool = False
) -> float:
    """A token of a training step with a LoRA adapter.

    Forward, and backward through the activations: twice the forward pass. The frozen weights get no
    gradient, which would be a third time (6 a parameter, Kaplan et al. 2020, without an adapter);
    attention's backward pass is twice its forward pass. `labelled`: share of the tokens that go
    through the head, frozen too. `recompute`: one more forward pass of the decoder, for gradient
    checkpointing (Korthikanti et al. 2022); utilisation does not count it, nor the head's.
    """
    forward = 2 * shape.decoder
    attention = encode_flops(shape, length) - forward
    passes = 1 if recompute else 0
    flops = (2 + passes) * forward + (3 + passes) * attention
    return flops + 6 * shape.adapter(rank) + labelled * 4 * shape.head


def decode_bytes(shape: Shape, context: int, batch: int) -> float:
    """A written token of a row: the weights are read once for the batch, the row's cache for itself.

    Infilling writes as `generate` does; the context's cache holds the text on both sides.
    """
    cache = 2 * shape.layers * shape.kv_heads * shape.head_dim * context * BF16
    return (shape.decoder + shape.head) * BF16 / batch + cache


def paper_step(shape: Shape, recompute: bool = False) -> tuple[float, float]:
    """FLOPs of the paper's step: 32 blocks of 512 tokens; and of its 64 pairs of 128 tokens.

    Of the context a fifth is labelled, and of a block the spans: 1 or 2 of 66 tokens on average.
    """
    spans = 1.5 * 66 / 512
    labelled = spans + 0.2 * (1 - spans)
    blocks = 32 * 512 * train_flops(shape, 512, labelled, recompute=recompute)
    pairs = 2 * 64 * 128 * train_flops(shape, 128, recompute=recompute)
    return blocks, pairs


def paper_run(shape: Shape, recompute: bool = False) -> float:
    """FLOPs of the paper's run: 4200 steps, the last 800 with pairs."""
    blocks, pairs = paper_step(shape, recompute)
    return 4200 * blocks + 800 * pairs


def gigabytes(size: float) -> str:
    """Bytes, shown."""
    return f"{size / 1e12:.1f} TB" if size >= 1e12 else f"{size / 1e9:.3g} GB"


def per_token_table(length: int, context: int) -> str:
    """FLOPs and bytes per token, by model and job."""
    head = [
        "model", "parameters", f"encode, {length} tokens: GFLOP per token",
        f"train, {length}: GFLOP per token",
        f"infill, {context} of context: GB read per token, alone", "batch 32",
    ]  # fmt: skip
    rows = []
    for name, shape in SHAPES.items():
        costs = (
            encode_flops(shape, length), train_flops(shape, length, 0.35),
            decode_bytes(shape, context, 1), decode_bytes(shape, context, 32),
        )  # fmt: skip
        parameters = f"{(shape.decoder + shape.head) / 1e9:.2f} G"
        rows.append([name, parameters, *(f"{cost / 1e9:.3g}" for cost in costs)])
    return markdown(head, rows)


def corpus_table(options: argparse.Namespace) -> str:
    """A corpus to vectors: work, time, cards for a day, disk."""
    rate = options.peak * 1e12 * options.encode
    rows = []
    for name, shape in SHAPES.items():
        flops = options.sentences * options.tokens * encode_flops(shape, options.tokens)
        hours, size = flops / rate / HOUR, options.sentences * shape.hidden * 4
        cards = f"{max(1, -(-hours // 24)):.0f}"
        rows.append([name, f"{flops / 1e18:.3g}", f"{hours:,.3g}", cards, gigabytes(size)])
    head = ["model", "EFLOP", "card hours", "cards for a day", "vectors in float32"]
    return markdown(head, rows)


def adaptation_table(options: argparse.Namespace) -> str:
    """The paper's run: work, time on some cards, memory a card with sharded weights."""
    rate = options.peak * 1e12 * options.train
    rows = []
    for name, shape in SHAPES.items():
        flops, cells = paper_run(shape), []
        for cards in options.cards:
            memory = training_memory(shape, cards)
            hours = flops / rate / cards / HOUR
            fits = "" if memory < USABLE * options.memory * 1e9 else ": does not fit"
            cells.append(f"{hours:.3g} h, {memory / 1e9:.3g}{fits}")
        rows.append([name, f"{flops / 1e18:.3g}", *cells])
    cards = [f"{n} card{'s' * (n > 1)}: hours, GB a card" for n in options.cards]
    return markdown(["model", "EFLOP", *cards], rows)


def training_memory(shape: Shape, cards: int) -> float:
    """Bytes a card: bf16 weights sharded (FSDP2), the adapter's 16 bytes a parameter too, and what a
    micro-batch of one block of the step's 32 needs with gradient checkpointing (one a card where
    there are as many cards): states between layers, one layer whole and unsharded, the head's chunk.
    """
    sharded = (shape.decoder + 2 * shape.head) * BF16 + 16 * shape.adapter(16)
    tokens = max(1, 32 // cards // 8) * 512  # an eighth of the card's share at a time
    states = tokens * shape.hidden * BF16 * shape.layers
    layer = 30 * tokens * shape.hidden + 2 * shape.decoder / shape.layers * BF16
    chunk = 512 * shape.vocab * 10
    return sharded / cards + states + layer + chunk


def writing_table(options: argparse.Namespace) -> str:
    """Tokens that a card writes in a second, bound by what it reads: small models, whose kernels are
    over before the next is launched, reach a fraction.
    """
    rate = options.bandwidth * 1e12 * options.decode
    batches = (1, 32, 128)
    rows = []
    for name, shape in SHAPES.items():
        weights = (shape.decoder + shape.head) * BF16
        shown = []
        for batch in batches:
            read = decode_bytes(shape, options.context, batch)
            fits = weights + (read - weights / batch) * batch < USABLE * options.memory * 1e9
            shown.append(f"{rate / read:,.3g}" if fits else "does not fit")
        rows.append([name, *shown])
    return markdown(["model", *(f"batch {batch}: tokens/s" for batch in batches)], rows)


def parse(command_line: list[str] | None = None) -> argparse.Namespace:
    """The assumptions."""
    parser = argparse.ArgumentParser(
        description="Projected cost of large jobs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--peak", type=float, default=989.0, help="dense bf16 TFLOP/s (data sheet: H200)")
    add("--bandwidth", type=float, default=4.8, help="TB/s of its memory (data sheet: H200)")
    add("--memory", type=float, default=141.0, help="GB of its memory")
    add("--encode", type=float, default=0.5, help="share of the peak that encoding reaches")
    add("--train", type=float, default=0.4, help="share of the peak that training reaches")
    add("--decode", type=float, default=0.6, help="share of the bandwidth that writing reaches")
    add("--sentences", type=float, default=1e9, help="of the corpus")
    add("--tokens", type=int, default=40, help="of a sentence, prompt included")
    add("--length", type=int, default=512, help="tokens of a text in the first table")
    add("--context", type=int, default=1024, help="tokens around what is infilled")
    add("--cards", type=int, nargs="+", default=[1, 8, 32], help="to adapt on")
    options = parser.parse_args(command_line)
    for name in ("encode", "train", "decode"):
        if not 0 < getattr(options, name) <= 1:
            parser.error(f"--{name} is {getattr(options, name)}: give a share, over 0 to 1")
    return options


def main(command_line: list[str] | None = None) -> None:
    """Print the tables."""
    options = parse(command_line)
    assumed = ", ".join(f"{name} {value}" for name, value in vars(options).items())
    print(f"Projections, not measurements. Assumed: {assumed}.\n")
    print("Cost per token\n\n" + per_token_table(options.length, options.context))
    print(f"\n{options.sentences:.0e} sentences to vectors\n\n" + corpus_table(options))
    print("\nThe paper's run (4200 steps, 82 M tokens), LoRA\n\n" + adaptation_table(options))
    print("\nWriting, one card\n\n" + writing_table(options))


if __name__ == "__main__":
    main()
