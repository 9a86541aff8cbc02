"""From a trained model to folders: the merged MAGNET folder and the adapter on its base."""

import copy
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from peft import PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from modeling_magnet import MagnetLlamaForCausalLM

from .arguments import DataArguments, MagnetTrainingArguments, ModelArguments
from .base import SMOLLM2, convert

CARD_TEMPLATE = Path(__file__).parents[1] / "model_card.md"


def merged(model) -> MagnetLlamaForCausalLM:
    """The trained model as a plain MAGNET model: adapter merged, projection head dropped.

    Takes the trained model apart; it cannot be trained further.
    """
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    return convert(model, MagnetLlamaForCausalLM)


def save_adapter(model: PeftModel, base: str | Path, folder: str | Path) -> None:
    """Write the LoRA adapter without the projection head, and the tokenizer, to a folder.

    Args:
        model: the trained model, not merged yet.
        base: id or folder of the MAGNET folder that the adapter stands on: where
            `AutoPeftModelForCausalLM` finds the base.
        folder: written aside and moved into place; must not exist, or be an adapter's folder.
    """
    folder = Path(folder)
    config: Any = copy.copy(model.peft_config["default"])
    config.modules_to_save = None
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in get_peft_model_state_dict(model).items()
        if "projection" not in name
    }
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file(weights, aside / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(aside))
    base_model: Any = model.get_base_model()
    base_model.tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def write_card(
    folder: str | Path,
    model: ModelArguments,
    data: DataArguments,
    args: MagnetTrainingArguments,
    log_history: list[dict],
) -> None:
    """Write a run's model card, from `model_card.md`, as the README of a saved folder.

    Args:
        folder: that `save_pretrained` wrote.
        model, data, args: the run's arguments.
        log_history: of the Trainer.
    """
    folder = Path(folder)
    base = "HuggingFaceTB/SmolLM2-135M-Instruct" if model.model == SMOLLM2 else model.model
    local = Path(base).exists()  # a path of this machine belongs into no card
    training = {
        "base model": Path(base).name if local else base,
        "LoRA": f"r {model.lora_r}, alpha {model.lora_alpha}"
        if model.lora_r
        else "none, all weights",
        "text": Path(data.blocks_file).name,
        "sentence pairs": Path(data.pairs_file).name if data.pairs_per_block else "none",
        "steps and weights": "; ".join(
            f"{phase['steps']} steps of mntp {phase.get('mntp', 0)}, sscl {phase.get('sscl', 0)}, "
            f"msg {phase.get('msg', 0)}"
            for phase in args.objective_schedule
        ),
        "a step": f"{args.train_batch_size * args.gradient_accumulation_steps} blocks of "
        f"{data.block_length} tokens, {data.pairs_per_block} pairs with each",
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type}",
        "temperature": args.temperature,
        "seed": args.seed,
    }
    losses: dict[str, float] = {}
    for line in log_history:
        losses |= {name: line[name] for name in ("mntp", "msg", "sscl") if name in line}
    card = ModelCard.from_template(
        ModelCardData(),
        template_path=str(CARD_TEMPLATE),
        name=folder.name,
        base_model=None if local else base,
        training=list(training.items()),
        losses=list(losses.items()),
    )
    card.save(folder / "README.md")
