"""Prompts and answers by trl: supervised fine-tuning, then DPO, then text to hold on to all three jobs.

    pip install -e ".[trl]"
    python -m examples.preference
    python -m examples.preference --pairs mine.jsonl --steps 200 --hold-steps 200 --output outputs/preference

A line of a file of pairs is {"prompt": ..., "chosen": ..., "rejected": ...}. Without a file they are made of the
repository's Wikipedia: the prompt is the first sentence of a paragraph, the chosen answer the second, and the
rejected one the second sentence of a paragraph of another article.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig

from evaluation.common.figures import Figure, table
from modeling_magnet import load_magnet
from modeling_magnet.cli.exporting import merge_adapter
from modeling_magnet.training import MagnetConfig, MagnetTrainer

from .fine_tune import ROOT
from .measuring import DATA, measure, read

try:
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
except ModuleNotFoundError as error:
    raise SystemExit('trl is not installed: pip install -e ".[trl]"') from error


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "magnet-smollm2-135m"))
    parser.add_argument("--pairs", type=Path, help=".jsonl: prompt, chosen, rejected")
    parser.add_argument("--steps", type=int, default=20, help="of fine-tuning, and of DPO")
    parser.add_argument("--hold-steps", type=int, default=20, help="of the text objectives")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--count", type=int, default=20, help="held-out texts to measure on")
    parser.add_argument("--output", type=Path, default=Path("outputs/preference"))
    options = parser.parse_args(command_line)
    output = options.output

    columns = ("prompt", "chosen", "rejected")
    pairs = read(options.pairs, columns) if options.pairs else sample("wiki-train.jsonl")
    held_out = sample("wiki-validation.jsonl")[: options.count]
    common: dict[str, Any] = {
        "per_device_train_batch_size": options.batch_size,
        "bf16": torch.cuda.is_available(),
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
    }

    model = whole(options.model, output / "base")
    tokenizer = model.tokenizer
    figures = [measured(model.eval(), held_out, options.count)]
    sft: Any = SFTTrainer(
        model=model,
        args=SFTConfig(str(output / "sft"), max_steps=options.steps, learning_rate=2e-4, **common),
        train_dataset=Dataset.from_list(
            [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    sft.train()
    dpo: Any = DPOTrainer(
        model=sft.model,  # whose adapter is trained on, and compared with what it was
        args=DPOConfig(str(output / "dpo"), max_steps=options.steps, learning_rate=5e-5, **common),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    dpo.train()
    dpo.model.save_pretrained(output / "preferred", selected_adapters=["default"])

    tuned = load_magnet(output / "preferred")
    figures.append(measured(tuned.eval(), held_out, options.count))
    hold = MagnetTrainer(
        model=tuned,
        args=MagnetConfig(
            output_dir=str(output / "hold"),
            objective_schedule=[{"steps": options.hold_steps, "mntp": 1, "msg": 1, "ntp": 1}],
            all_span_fraction=0.5,
            block_length=tuned.magnet_settings.trained_length or 128,  # what it can, it keeps
            max_span_length=32,
            learning_rate=2e-4,
            **common,
        ),
        train_dataset=Dataset.from_list(read(DATA / "wiki-train.jsonl")),
    )
    hold.train()
    hold.save_model(str(output / "model"))
    figures.append(measured(load_magnet(output / "model").eval(), held_out, options.count))
    print("\n" + table(dict(zip(("before", "DPO", "held"), figures, strict=True))))
    print(f"\nThe model: {output / 'model'}")


def whole(place: str, folder: Path) -> Any:
    """A model without an adapter of its own, which trl would replace; with one it is merged into `folder`."""
    model = load_magnet(place)
    if not getattr(model, "peft_config", None):
        return model
    merge_adapter(model)
    model.save_pretrained(folder)
    return load_magnet(folder)


def sample(name: str) -> list[dict[str, str]]:
    """Pairs of the repository's text."""
    begins = []
    for row in map(json.loads, (DATA / name).read_text(encoding="utf-8").splitlines()):
        sentences = re.split(r"(?<=[a-z]{2}\.) (?=[A-Z])", row["text"])
        if len(sentences) > 1:
            begins.append((row["title"], sentences[0], " " + sentences[1]))
    half = len(begins) // 2
    others = begins[half:] + begins[:half]
    return [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for (title, prompt, chosen), (other, _, rejected) in zip(begins, others, strict=True)
        if title != other
    ]


def measured(model: Any, pairs: list[dict[str, str]], count: int) -> dict[str, Figure]:
    """All three jobs: sentences and infilling, and how often the chosen answer is the likelier one."""
    better = [
        log_probability(model, row["prompt"], row["chosen"])
        > log_probability(model, row["prompt"], row["rejected"])
        for row in pairs
    ]
    preferred = Figure.of_ratio([float(found) for found in better]).scaled(100)
    return {"chosen answer preferred, %": preferred} | measure(model, count).figures


@torch.no_grad()
def log_probability(model: Any, prompt: str, answer: str) -> float:
    """Of an answer's token, on average."""
    before = len(model.tokenizer(prompt)["input_ids"])
    ids = torch.tensor([model.tokenizer(prompt + answer)["input_ids"]], device=model.device)
    scores = model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)  # (tokens - 1, vocabulary)
    return float(scores.gather(1, ids[0, 1:, None])[before - 1 :].mean())


if __name__ == "__main__":
    main()
