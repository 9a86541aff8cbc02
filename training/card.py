"""A run's model card, from what the run wrote about itself."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .arguments import OBJECTIVES
from .base import SMOLLM2

TEMPLATE = Path(__file__).parents[1] / "model_card.md"


def write_card(
    folder: str | Path,
    run: str | Path,
    sections: str = "",
    adapter: bool = False,
    license_: str = "",
) -> None:
    """Write the card of a run's model, from `model_card.md`, as the README of a folder.

    Args:
        folder: a saved model's, or an adapter's.
        run: the run's folder, with its `run.json` and `results.json`.
        sections: Markdown to go in behind the training settings, such as results.
        adapter: whether the folder holds an adapter, which is loaded in another way.
        license_: of the weights, by its name on the Hub; none is named without.
    """
    folder, run = Path(folder), Path(run)
    settings = json.loads((run / "run.json").read_text(encoding="utf-8"))
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    base = settings["model"]
    base = "HuggingFaceTB/SmolLM2-135M-Instruct" if base == SMOLLM2 else base
    local = Path(base).exists()  # a path of this machine belongs into no card
    losses = {
        name: f"{points[-1][1]:.4g}"
        for name, points in results["curves"].items()
        if name in OBJECTIVES
    }
    card = ModelCard.from_template(
        ModelCardData(),
        template_path=str(TEMPLATE),
        name=folder.name,
        base_model=None if local else base,
        adapter=adapter,
        license_=license_,
        training=list(_training(settings, Path(base).name if local else base).items()),
        losses=list(losses.items()),
        sections=sections,
    )
    card.save(folder / "README.md")


def _training(settings: dict[str, Any], base: str) -> dict[str, Any]:
    r, blocks = settings["lora_r"], settings["block_length"]
    a_step = (
        settings["per_device_train_batch_size"]
        * settings["gradient_accumulation_steps"]
        * settings["processes"]
    )
    return {
        "base model": base,
        "LoRA": f"r {r}, alpha {settings['lora_alpha']}" if r else "none, all weights",
        "text": _sources(settings["text"]),
        "sentence pairs": _sources(settings["pairs"]) if settings["pairs_per_block"] else "none",
        "steps and weights": "; ".join(
            f"{phase['steps']} steps of "
            + ", ".join(f"{name} {phase[name]}" for name in OBJECTIVES if phase.get(name))
            for phase in settings["objective_schedule"]
        ),
        "a step": f"{a_step} blocks of {blocks} tokens, {settings['pairs_per_block']} pairs with each",
        "learning rate": f"{settings['learning_rate']:g}, {settings['lr_scheduler_type']}",
        "temperature": settings["temperature"],
        "seed": settings["seed"],
    }


def _sources(source: list[str]) -> str:
    names = [
        Path(name).name if name.startswith(("/", ".")) or Path(name).exists() else name
        for name in source
    ]
    return ", ".join(names) or "none"
