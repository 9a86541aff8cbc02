"""`magnet infill` and `magnet generate`: records and prompts to JSON lines, or one of them streamed."""

import sys
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from typing import Any, BinaryIO

import torch
import typer
from torch.nn.utils.rnn import pad_sequence
from transformers import TextStreamer, set_seed

from ..tokenizing import TextTokenizer
from .gaps import Gap
from .reading import Row, batches
from .writing import Skipped, json_line


def sampling(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    samples: int,
    seed: int | None,
) -> dict[str, Any]:
    """Arguments of `generate`; none where no option is given, so that the checkpoint's own hold."""
    if seed is not None:
        set_seed(seed)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    arguments: dict[str, Any] = {k: value for k, value in options.items() if value is not None}
    if arguments or samples > 1:
        arguments["do_sample"] = True
    if samples > 1:
        arguments["num_return_sequences"] = samples
    return arguments


def infill_rows(
    model: Any,
    gaps: Iterator[tuple[Row, Gap]],
    batch_size: int,
    arguments: dict[str, Any],
    file: BinaryIO,
    skipped: Skipped,
) -> None:
    """Fill the blanks of records and write a line a record and sample.

    Args:
        gaps: of `Skipped.read`.
        batch_size: records that are decoded together.
        arguments: of `infill_blanks`.
        file: receives each line as soon as it is ready.
        skipped: gets the records that cannot be filled.

    Raises:
        ValueError: none could be filled.
    """
    done = 0
    for batch in batches(gaps, batch_size):
        for _, group in groupby(batch, key=_together):
            for (row, gap), filled in _infill_together(model, list(group), arguments, skipped):
                samples = filled if "num_return_sequences" in arguments else [[m] for m in filled]
                for sample, middles in enumerate(zip(*samples, strict=True)):
                    middle = {"middle": middles[0]} if len(middles) == 1 else {"middles": middles}
                    content = {"index": row.index, **middle, "text": gap.filled(middles)}
                    _write(file, content, sample, arguments)
                done += 1
    skipped.require_some(done)


def generate_rows(
    model: Any,
    rows: Iterator[Row],
    batch_size: int,
    arguments: dict[str, Any],
    file: BinaryIO,
    skipped: Skipped,
) -> None:
    """Continue prompts and write a line a prompt and sample; the arguments are as in `infill_rows`."""
    done = 0
    for batch in batches(skipped.read(rows, partial(prompt_ids, model)), batch_size):
        samples = continuations(model, [token_ids for _, token_ids in batch], arguments)
        for (row, _), written in zip(batch, samples, strict=True):
            decoder = decoder_after(model, row.value)
            for sample, ids in enumerate(written):
                text = decoder.decode(ids)
                content = {"index": row.index, "prompt": row.value, "continuation": text}
                _write(file, {**content, "text": row.value + text}, sample, arguments)
            done += 1
    skipped.require_some(done)


def prompt_ids(model: Any, prompt: str) -> list[int]:
    """The tokens of a prompt; a ValueError where there are none to begin with."""
    (token_ids,) = model.text_tokenizer.ids([prompt], add_special_tokens=True)
    if not token_ids:
        raise ValueError(
            "the prompt is empty, and the tokenizer adds no token to begin with: give a text"
        )
    return token_ids


def continuations(
    model: Any, prompts: list[list[int]], arguments: dict[str, Any]
) -> list[list[list[int]]]:
    """The samples of each prompt's continuation, written together as one left-padded batch."""
    rows = [torch.tensor(prompt, device=model.device) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_side="left")  # (prompts, longest)
    ones = [torch.ones_like(row) for row in rows]
    mask = pad_sequence(ones, batch_first=True, padding_side="left")
    if model.generation_config.pad_token_id is None:
        arguments = {"pad_token_id": model.magnet_settings.end_token_id, **arguments}
    written = model.generate(input_ids=ids, attention_mask=mask, **arguments)[:, ids.shape[1] :]
    return [rows.tolist() for rows in written.split(len(written) // len(prompts))]


def decoder_after(model: Any, before: str) -> TextTokenizer:
    """What decodes text that is written after other text, which may be empty."""
    return model.text_tokenizer.continued if before else model.text_tokenizer


class Streamer(TextStreamer):
    """Writes new text to standard output as it is generated, after the text `before`.

    With `after_space`, the new text's first spaces are left out.
    """

    def __init__(self, model: Any, before: str, after_space: bool = False):
        decoder: Any = decoder_after(model, before)
        super().__init__(decoder, skip_prompt=True, skip_special_tokens=True)
        self.after_space = after_space

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write a piece; after a space it begins with none."""
        if self.after_space:
            text = text.lstrip(" ")
            self.after_space = not text
        sys.stdout.write(text)
        sys.stdout.flush()


def stream_infill(model: Any, gap: Gap, arguments: dict[str, Any]) -> None:
    """Write prefix, middle (as it is generated) and suffix of a gap that `check_stream` accepts."""
    prefix, suffix = gap.parts
    typer.echo(prefix, nl=False)
    streamer = Streamer(model, prefix.rstrip(" "), after_space=prefix.endswith(" "))
    model.infill(prefix, suffix, span_length=gap.span_length, streamer=streamer, **arguments)
    typer.echo(suffix)


def stream_generate(model: Any, prompt: str, arguments: dict[str, Any]) -> None:
    """Write the prompt, and its continuation as it is generated."""
    token_ids = prompt_ids(model, prompt)
    typer.echo(prompt, nl=False)
    continuations(model, [token_ids], {**arguments, "streamer": Streamer(model, prompt)})
    typer.echo()


def _together(item: tuple[Row, Gap]) -> Any:
    """Equal for neighbours that `infill_blanks` takes in one call."""
    row, gap = item
    alone = gap.span_length is not None and not isinstance(gap.span_length, int)
    return ("alone", row.index) if alone else gap.span_length


def _infill_together(
    model: Any, group: list[tuple[Row, Gap]], arguments: dict[str, Any], skipped: Skipped
) -> Iterator[tuple[tuple[Row, Gap], list[Any]]]:
    """The group's spans; where one record cannot be filled, the others are filled one by one."""
    parts, span_length = [gap.parts for _, gap in group], group[0][1].span_length
    try:
        if len(group) == 1:
            found = [model.infill_blanks(parts[0], span_length, **arguments)]
        else:
            found = model.infill_blanks(parts, span_length, **arguments)
    except (TypeError, ValueError) as error:
        if len(group) == 1:
            skipped.add(group[0][0], str(error).replace("text 0 ", "the text ", 1))
        else:
            for item in group:
                yield from _infill_together(model, [item], arguments, skipped)
        return
    yield from zip(group, found, strict=True)


def _write(file: BinaryIO, content: dict[str, Any], sample: int, arguments: dict) -> None:
    if "num_return_sequences" in arguments:
        content = {"index": content.pop("index"), "sample": sample, **content}
    file.write(json_line(content))
    file.flush()
