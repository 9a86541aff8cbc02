"""Writes the folders of a finished run: the adapter on its base, and the merged Magnet folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, Trainer

from modeling_magnet import MagnetMixin, magnet_class_for
from modeling_magnet.atomic import atomic_write

from .arguments import MagnetTrainingArguments, ModelArguments
from .base import dtype_of, unsharded_weights
from .card import write_card


def save_run(trainer: Trainer, arguments: ModelArguments, output: Path) -> MagnetMixin | None:
    """Write `adapter/` (only LoRA, on `base/`) and `model/` (merged), both without the projection head.

    Call it in every process, since sharded weights are gathered.

    Args:
        trainer: after training.
        arguments: of the run.
        output: the run's folder, which holds `base/`.

    Returns:
        The merged model, in the main process.
    """
    trained = output / ".trained"
    trainer.save_model(str(trained), _internal_call=True)
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        return None
    model: Any
    base, adapter = output / "base", output / "adapter"
    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    model_class: Any = magnet_class_for(config)
    with unsharded_weights(trainer.args):
        if arguments.lora_r:
            write_adapter(trained, base, adapter)
            model = model_class.from_pretrained(base, dtype=dtype_of(arguments))
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        else:
            model = model_class.from_pretrained(trained, config=config, dtype=dtype_of(arguments))
            model.tokenizer  # noqa: B018  before its folder is removed
    model.eval()
    model.save_pretrained(output / "model")
    shutil.rmtree(trained)
    return model


def write_adapter(trained: Path, base: Path, folder: Path) -> None:
    """Write a folder of the LoRA adapter without the projection head.

    Args:
        trained: what the Trainer wrote.
        base: where `AutoPeftModelForCausalLM` finds the base.
        folder: replaced whole, or left unchanged.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder, stale=["*"]) as temporary:
        shutil.copytree(trained, temporary, ignore=shutil.ignore_patterns("*.bin", "README.md"))
        weights = load_file(temporary / SAFETENSORS_WEIGHTS_NAME)
        weights = {name: value for name, value in weights.items() if "projection" not in name}
        save_file(weights, temporary / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        config = json.loads((temporary / CONFIG_NAME).read_text(encoding="utf-8"))
        config |= {"modules_to_save": None, "base_model_name_or_path": str(base)}
        (temporary / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def push(folder: Path, args: MagnetTrainingArguments) -> str:
    """Upload a run's saved folder to the Hub, as `hub_model_id` or the run's name, and name it so in its card.

    Returns:
        The commit's address.
    """
    api = HfApi(token=args.hub_token)
    name = args.hub_model_id or Path(args.output_dir).name
    repo_id = api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id
    write_card(folder, args.output_dir, name=repo_id)
    return str(
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload MAGNET model")
    )
