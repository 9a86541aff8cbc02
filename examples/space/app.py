"""A page to try Magnet on: similarity, infilling, generation.

    pip install -e ".[demo]"
    MAGNET_MODEL=outputs/quickstart/adapter python examples/space/app.py

`MAGNET_MODEL` is a folder or Hub id of any MAGNET checkpoint. An adapter that is not merged can be
switched off, so that the page also shows what the base model writes. README.md beside this file says
how the page becomes a Space.
"""

import html
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from threading import Event
from typing import Any

import gradio as gr
import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer, set_seed

from modeling_magnet import load_magnet

MODEL = os.environ.get("MAGNET_MODEL", "checkpoints/magnet-smollm2-135m")
BLANK = re.compile("_{3,}")
MOST_SENTENCES = 24
MOST_TOKENS = 512
"""Of a text: what keeps a small machine's answer within seconds."""
MOST_SAMPLES = 4
AUTOMATIC = 32
"""Tokens that a blank of automatic length gets at most."""
WRITTEN = "written"
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""For every event that runs the model: they would share its processors, and draw from one seed."""


def load(place: str) -> tuple[Any, bool]:
    """The model on its device, and whether its adapter can be switched off."""
    device, dtype = (
        ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    )
    try:
        model = load_magnet(place, dtype=dtype).to(device).eval()
        model.magnet_settings  # noqa: B018  a missing tokenizer is said now
    except (ImportError, OSError, ValueError) as error:
        raise SystemExit(f"MAGNET_MODEL is {place!r}, which does not load: {error}") from error
    try:
        with model.without_adapter():
            return model, True
    except ValueError:  # merged, or there never was one
        return model, False


model, has_adapter = load(MODEL)


def refused(message: str) -> gr.Error:
    """An error for the page alone: the log gets no traceback."""
    return gr.Error(message, print_exception=False)


def checked(text: str, what: str) -> str:
    """The text, if the model can be given it.

    Raises:
        gr.Error: it is empty or too long.
    """
    if not text.strip():
        raise refused(f"The {what} is empty: write something.")
    limit = min(MOST_TOKENS, model.magnet_settings.max_length // 2)
    try:
        (token_ids,) = model.text_tokenizer.ids([text])
    except ValueError as error:  # no Unicode text
        raise refused(f"The {what} cannot be read: {error}.") from error
    count = len(token_ids)
    if count > limit:
        raise refused(f"The {what} has {count} tokens, this page takes {limit}: shorten it.")
    return text


# Similarity


def similarity(lines: str, query: str) -> tuple[str, str]:
    """Compare sentences, one a line, with each other and with a query: a heat map and a table."""
    checked(lines, "list of sentences")
    sentences = [line.strip() for line in lines.splitlines() if line.strip()]
    if len(sentences) < 2:
        raise refused(
            "Got one sentence: give two or more, one a line, so that there is something to compare."
        )
    if len(sentences) > MOST_SENTENCES:
        gr.Warning(f"Got {len(sentences)} sentences: the first {MOST_SENTENCES} are compared.")
        sentences = sentences[:MOST_SENTENCES]
    query = checked(query, "query") if query.strip() else ""
    texts = [*sentences, query] if query else sentences
    vectors = model.encode(texts, normalize_embeddings=True)  # (texts, hidden)
    own = vectors[: len(sentences)]
    nearest = nearest_table(query, sentences, own @ vectors[-1]) if query else ""
    return heat_map(sentences, own @ own.T), nearest


def heat_map(sentences: list[str], cosines: np.ndarray) -> str:
    """A table of cosines (sentences, sentences), coloured from the least to the most alike pair."""
    pairs = cosines[~np.eye(len(cosines), dtype=bool)]
    low, high = float(pairs.min()), float(pairs.max())
    shares = np.clip((cosines - low) / max(high - low, 1e-6), 0, 1)
    names = [html.escape(sentence) for sentence in sentences]
    head = "".join(f'<th title="{name}">{i}</th>' for i, name in enumerate(names, 1))
    body = ""
    for i, name in enumerate(names):
        cells = "".join(
            f'<td class="same">{cosines[i, j]:.2f}</td>'
            if i == j
            else f'<td style="--share: {shares[i, j]:.2f}" title="{name}\n{names[j]}">'
            f"{cosines[i, j]:.2f}</td>"
            for j in range(len(names))
        )
        body += f"<tr><th>{i + 1}</th><th>{name}</th>{cells}</tr>"
    return (
        f'<div class="figures heat"><h3>Similarity of each pair</h3>'
        f"<table><tr><th></th><th></th>{head}</tr>{body}</table>"
        f"<p>Cosine similarity; colour from {low:.2f}, the least alike pair, to {high:.2f}, the most "
        "alike.</p></div>"
    )


def nearest_table(query: str, sentences: list[str], cosines: np.ndarray) -> str:
    """The sentences by their cosine (sentences,) to the query, the nearest first."""
    low, high = float(cosines.min()), float(cosines.max())
    body = ""
    for i in np.argsort(-cosines):
        share = (cosines[i] - low) / max(high - low, 1e-6)
        body += (
            f'<tr><td style="--share: {share:.2f}">{cosines[i]:.2f}</td>'
            f"<th>{html.escape(sentences[i])}</th></tr>"
        )
    return (
        f'<div class="figures nearest"><h3>Nearest to \u201c{html.escape(query)}\u201d</h3>'
        f"<table>{body}</table></div>"
    )


# Infilling and generation


class Stopped(StoppingCriteria):
    """Ends decoding once an event is set."""

    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids, scores, **kwargs) -> torch.Tensor:
        """True for each row once the event is set."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


def streamed(write: Callable[..., str], before: str) -> Iterator[str]:
    """The text that `write(streamer=..., stopping_criteria=...)` returns, as it grows after `before`.

    It writes in a thread of its own. When the reader goes away, so does the thread.
    """
    tokenizer = model.text_tokenizer.continued if before else model.text_tokenizer
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    gone = Event()

    def run() -> str:
        try:
            return write(streamer=streamer, stopping_criteria=StoppingCriteriaList([Stopped(gone)]))
        finally:
            streamer.end()  # an error must not leave the reader waiting

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run)
        text = ""
        try:
            for piece in streamer:
                text += piece
                yield text
        finally:
            gone.set()
        yield running.result()


def sampling(temperature: float) -> dict[str, Any]:
    """Arguments of `generate`; temperature 0 is the likeliest token each time."""
    if temperature == 0:
        return {"do_sample": False}
    return {"do_sample": True, "temperature": temperature}


def infill(
    text: str, automatic: bool, length: int, samples: int, temperature: float, seed: int
) -> Iterator[list]:
    """Fill the blanks of a text; yields updates of the samples' boxes.

    One blank of a given length is streamed; several are decoded together.
    """
    parts = BLANK.split(checked(text, "text"))
    if len(parts) == 1:
        raise refused(
            "The text has no blank: write ___ (three underscores) where something is missing."
        )
    if not any(part.strip() for part in parts):
        raise refused("There are only blanks: write text around them.")
    if not all(part.strip() for part in parts[1:-1]):
        raise refused("Two blanks stand side by side: make them one.")
    if samples > 1 and temperature == 0:
        gr.Warning("At temperature 0 all samples are alike, so there is one: raise it for more.")
        samples = 1
    set_seed(int(seed or 0))
    arguments = sampling(temperature)
    arguments |= {"max_new_tokens": AUTOMATIC} if automatic else {"span_length": int(length)}
    filled: list[list[str]] = []
    try:
        if len(parts) > 2 or automatic:
            yield boxes(parts, filled)
            if samples > 1:
                arguments["num_return_sequences"] = samples
            found = model.infill_blanks(parts, **arguments)  # a text a blank, or a list of samples
            filled = (
                [list(middles) for middles in zip(*found, strict=True)] if samples > 1 else [found]
            )
            yield boxes(parts, filled)
            return
        for _ in range(samples):
            filled.append([""])
            before = parts[0].rstrip(" ")
            for middle in streamed(
                lambda **more: model.infill(*parts, **arguments, **more), before
            ):
                # a streamer sees the token's own space too, where the text before the blank ends with one
                filled[-1] = [middle.lstrip(" ") if parts[0].endswith(" ") else middle]
                yield boxes(parts, filled)
    except ValueError as error:  # the checkpoint's own limits
        raise refused(f"{error}.") from error


def boxes(parts: list[str], filled: list[list[str]]) -> list:
    """Each sample's text with what was written marked; the boxes of no sample are hidden."""
    updates = []
    for i in range(MOST_SAMPLES):
        if i >= len(filled):
            updates.append(gr.HighlightedText(visible=i == 0, value=[]))
            continue
        pieces = []
        for part, middle in zip_longest(parts, filled[i], fillvalue=""):
            pieces += [(part, None), (middle, WRITTEN)]
        updates.append(gr.HighlightedText([piece for piece in pieces if piece[0]], visible=True))
    return updates


def generate(prompt: str, most: int, temperature: float, seed: int) -> Iterator[tuple[list, list]]:
    """Continue a prompt with the adapter, then without it; yields both boxes' content."""
    given = model.text_tokenizer.ids([checked(prompt, "prompt")], add_special_tokens=True)
    inputs = torch.tensor(given, device=model.device)  # (1, tokens)

    def write(**more) -> str:
        set_seed(int(seed or 0))
        token_ids = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=int(most),
            pad_token_id=model.magnet_settings.end_token_id,
            **sampling(temperature),
            **more,
        )
        return model.text_tokenizer.continued.decode(token_ids[0, inputs.shape[1] :].tolist())

    def write_as_base(**more) -> str:  # the adapter is off for the thread that says so
        with model.without_adapter():
            return write(**more)

    def marked(text: str) -> list:
        return [(prompt, None), (text, WRITTEN)] if text else [(prompt, None)]

    adapted = ""
    for adapted in streamed(write, prompt):
        yield marked(adapted), []
    if has_adapter:
        for text in streamed(write_as_base, prompt):
            yield marked(adapted), marked(text)


# The page

SENTENCES = """\
A man is playing a guitar on the street.
Somebody is making music outside.
The bank raised its interest rates again.
Borrowing money has become more expensive.
The ferry leaves the harbour at seven.
Boats to the island depart every morning."""

QUESTIONS = """\
How do I reset my password?
I cannot log in to my account.
Where is my parcel?
The delivery has not arrived yet.
Can I pay by credit card?
Which payment methods do you accept?"""

CSS = """
.html-container:has(.figures) { padding: 0 !important; }
.figures { overflow-x: auto; padding: var(--block-padding); border-radius: var(--block-radius);
           background: var(--block-background-fill); box-shadow: var(--block-shadow); }
.figures h3 { margin: 0 0 0.75rem; }
.figures table { border-collapse: separate; border-spacing: 2px; margin: 0; border: none; }
.figures th { font-weight: 400; padding: 0.4rem 0.6rem; border: none; text-align: center;
              color: var(--body-text-color-subdued); }
.figures td { text-align: center; padding: 0.4rem; min-width: 3.4rem; border: none;
              border-radius: 4px; font-variant-numeric: tabular-nums;
              background: color-mix(in srgb, #10b981 calc(var(--share) * 85%), transparent); }
.figures td.same { color: var(--body-text-color-subdued); background: var(--background-fill-secondary); }
.heat th:nth-child(2), .nearest th { text-align: left; color: var(--body-text-color); }
.heat th:nth-child(2) { min-width: 16rem; width: 100%; }
.figures p { color: var(--body-text-color-subdued); margin: 0.75rem 0 0; }
/* Running text: pieces stand in a row, and of spaces only their own count. */
.filled .textfield { display: block; font-size: 0; word-break: normal; overflow-wrap: anywhere; }
.filled .text { font-size: 1rem; line-height: 1.8; background: inherit; padding: 0.15rem 0;
                color: var(--body-text-color); }
.filled .token-container, .filled .token.highlighted { display: inline; margin: 0; padding: 0; }
"""


def theme() -> gr.themes.Base:
    """Colours with a contrast of at least 4.5; no font is fetched from elsewhere."""
    soft = gr.themes.Soft(primary_hue="emerald", font=["system-ui", "sans-serif"])
    return soft.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        block_label_text_color="*primary_800",
        block_title_text_color="*primary_800",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


def about() -> str:
    """What stands above the tabs."""
    count = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" not in name)
    return (
        "# Magnet\n"
        "One decoder that encodes, infills and generates, with one set of weights. "
        f"This page runs `{MODEL}`, {count / 1e6:,.0f} million parameters."
    )


def sampling_controls() -> tuple[gr.Slider, gr.Number]:
    """The two that infilling and generation share."""
    return (
        gr.Slider(
            0, 1.5, 0, step=0.1, label="Temperature", info="0: the likeliest token", buttons=[]
        ),
        gr.Number(
            0,
            minimum=0,
            maximum=2**32 - 1,
            label="Seed",
            precision=0,
            info="the same seed, the same text",
        ),
    )


def written_box(label: str, visible: bool = True) -> gr.HighlightedText:
    """A text in which what the model wrote is marked."""
    return gr.HighlightedText(
        label=label,
        color_map={WRITTEN: "#a7f3d0"},
        show_inline_category=False,
        elem_classes="filled",
        visible=visible,
    )


def run_until_stopped(
    write: Callable[..., Iterator],
    inputs: list,
    outputs: list,
    *,
    start: gr.Button,
    stop: gr.Button,
    submitted: gr.Textbox,
) -> None:
    """Run `write` on a click or Enter; while it runs, the button that stops it takes the other's place."""
    aside: dict[str, Any] = {
        "inputs": None,
        "outputs": [start, stop],
        "queue": False,
        "show_progress": "hidden",
        "api_visibility": "private",
    }

    def show_stop() -> tuple[gr.Button, gr.Button]:
        return gr.Button(visible=False), gr.Button(visible=True)

    def show_start() -> tuple[gr.Button, gr.Button]:
        return gr.Button(visible=True), gr.Button(visible=False)

    begun = gr.on([start.click, submitted.submit], show_stop, **aside)
    writing = begun.then(write, inputs, outputs, api_name=write.__name__, **ONE_AT_A_TIME)
    writing.then(show_start, **aside)
    stop.click(None, cancels=[writing])


with gr.Blocks(title="Magnet", analytics_enabled=False) as demo:
    gr.Markdown(about())
    with gr.Tab("Similarity"):
        with gr.Row(equal_height=True):
            sentences_box = gr.Textbox(
                SENTENCES, lines=7, max_lines=16, label="Sentences, one a line", scale=3
            )
            query_box = gr.Textbox(
                "Live music in town", lines=2, label="Query", info="leave empty for none", scale=2
            )
        compare = gr.Button("Compare", variant="primary")
        gr.Examples(
            [[SENTENCES, "Live music in town"], [QUESTIONS, "my order is late"]],
            [sentences_box, query_box],
            example_labels=["News of the day", "A help desk"],
        )
        heat_box, nearest_box = gr.HTML(), gr.HTML()
        gr.on(
            [compare.click, query_box.submit],
            similarity,
            [sentences_box, query_box],
            [heat_box, nearest_box],
            api_name="similarity",
            **ONE_AT_A_TIME,
        )

    with gr.Tab("Infilling"):
        text_box = gr.Textbox(
            "Sam planted a seed in the garden. ___ In summer there were red flowers.",
            lines=3,
            label="Text with blanks",
            info="three underscores wherever something is missing",
        )
        with gr.Row(equal_height=True):
            automatic_box = gr.Checkbox(
                True,
                label="Automatic length",
                info="about as long as the sentences around the blank",
            )
            length_box = gr.Slider(
                1,
                64,
                16,
                step=1,
                label="Length",
                info="tokens per blank, if not automatic",
                buttons=[],
                scale=2,
            )
        with gr.Row(equal_height=True):
            samples_box = gr.Slider(
                1,
                MOST_SAMPLES,
                1,
                step=1,
                label="Samples",
                info="several need a temperature",
                buttons=[],
            )
            temperature_box, seed_box = sampling_controls()
        fill = gr.Button("Fill in", variant="primary")
        stop_filling = gr.Button("Stop", visible=False)
        gr.Examples(
            [
                [
                    "Sam planted a seed in the garden. ___ In summer there were red flowers.",
                    True,
                    16,
                    1,
                    0,
                ],
                [
                    "John went to the gym. ___ He could not get the barbell off his chest.",
                    False,
                    20,
                    3,
                    0.7,
                ],
                ["The ___ sat on the ___ all day.", False, 2, 1, 0],
            ],
            [text_box, automatic_box, length_box, samples_box, temperature_box],
            example_labels=["One blank", "A missing sentence, three samples", "Two blanks"],
        )
        filled_boxes = [written_box(f"Sample {i + 1}", visible=i == 0) for i in range(MOST_SAMPLES)]
        length_box.input(lambda: False, None, automatic_box, queue=False)
        run_until_stopped(
            infill,
            [text_box, automatic_box, length_box, samples_box, temperature_box, seed_box],
            filled_boxes,
            start=fill,
            stop=stop_filling,
            submitted=text_box,
        )

    with gr.Tab("Generation"):
        prompt_box = gr.Textbox("The history of the steam engine", lines=3, label="Prompt")
        with gr.Row(equal_height=True):
            most_box = gr.Slider(
                8, 128, 40, step=1, label="Length", info="tokens at most", buttons=[]
            )
            temperature_box, seed_box = sampling_controls()
        write_on = gr.Button("Continue", variant="primary")
        stop_writing = gr.Button("Stop", visible=False)
        gr.Examples(
            [
                ["The history of the steam engine"],
                ["Once upon a time, in a village by the sea,"],
                ["The best way to learn a language is"],
            ],
            [prompt_box],
        )
        with gr.Row(equal_height=True):
            continued_boxes = [
                written_box("With the adapter" if has_adapter else "Continued"),
                written_box("Without it: the base model", visible=has_adapter),
            ]
        if not has_adapter:
            gr.Markdown(
                "The adapter of this checkpoint is merged into its weights, or there was none: run the "
                "page with an adapter's folder to see the base model beside it."
            )
        run_until_stopped(
            generate,
            [prompt_box, most_box, temperature_box, seed_box],
            continued_boxes,
            start=write_on,
            stop=stop_writing,
            submitted=prompt_box,
        )

if __name__ == "__main__":
    demo.launch(theme=theme(), css=CSS)
