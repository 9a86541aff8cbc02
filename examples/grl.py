"""Generation-augmented representation learning (ULLME): contrastive + DPO + agreement of both scores.

    pip install -e ".[trl]"
    python -m examples.grl
    python -m examples.grl --triplets mine.jsonl --steps 300 --output outputs/grl

A line of a file of triplets is {"anchor": ..., "positive": ..., "negative": ...}. A passage has two scores for a query:
the cosine of their vectors, and the mean log-probability of its tokens after the query. The contrastive loss trains
the first, DPO the second, and the divergence draws the first to the second (Man et al. 2024, arXiv 2408.03402).

trl's `DPOTrainer` does the work, and one method adds the two losses. On one process: negatives are those of a batch.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig

from modeling_magnet import load_magnet
from modeling_magnet.training.objectives import info_nce

from .fine_tune import ROOT
from .measuring import DATA, compare, measure, read, sentences_of_paragraphs
from .preference import whole

try:
    from trl import DPOConfig, DPOTrainer
except ModuleNotFoundError as error:
    raise SystemExit('trl is not installed: pip install -e ".[trl]"') from error


def main(command_line: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "checkpoints" / "magnet-smollm2-135m"))
    parser.add_argument("--triplets", type=Path, help=".jsonl: anchor, positive, negative")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--count", type=int, default=20, help="held-out paragraphs to measure on")
    parser.add_argument("--output", type=Path, default=Path("outputs/grl"))
    options = parser.parse_args(command_line)

    if options.triplets:
        triplets = read(options.triplets, ("anchor", "positive", "negative"))
    else:
        triplets = sentences_of_paragraphs(read(DATA / "wiki-train.jsonl"), per_paragraph=2)
    model = whole(options.model, options.output / "base").eval()
    before = measure(model, options.count)
    trainer = GRLTrainer(
        model=model,
        args=DPOConfig(
            str(options.output / "run"),
            max_steps=options.steps,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            bf16=torch.cuda.is_available(),
            logging_steps=10,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=preferences(triplets),
        processing_class=model.tokenizer,
        peft_config=LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(options.output / "model"))
    after = measure(load_magnet(options.output / "model").eval(), options.count)
    print(compare(before, after))
    print(f"\nThe model: {options.output / 'model'}")


class GRLTrainer(DPOTrainer):
    """DPO on passages after their query, the contrastive loss, and the divergence between both scores.

    Args:
        contrastive, divergence: the weights beside DPO's 1.
        temperature: of cosines, in both losses.
        kwargs: of trl's `DPOTrainer`; the rows are a query (`prompt`), its passage (`chosen`) and one that
            is none (`rejected`).

    Raises:
        ValueError: several processes are to train.
    """

    def __init__(
        self, *, contrastive=1.0, divergence=1.0, temperature: float = 0.05, **kwargs: Any
    ):
        super().__init__(**kwargs)
        if self.args.world_size > 1:
            raise ValueError(f"{self.args.world_size} processes: negatives are gathered from one")
        self.contrastive, self.divergence = contrastive, divergence
        self.temperature = temperature

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the three losses."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = found if return_outputs else (found,)
        magnet = self.accelerator.unwrap_model(model).get_base_model()
        queries, passages = self._vectors(magnet, inputs)  # (pairs, hidden), (2 x pairs, hidden)
        scores = mean_log_probabilities(magnet, inputs).view(2, -1).T  # (pairs, 2)
        loss = loss + self.contrastive * info_nce(queries, passages, self.temperature)
        loss = loss + self.divergence * agreement(queries, passages, scores, self.temperature)
        return (loss, *outputs) if return_outputs else loss

    def _vectors(self, magnet: Any, inputs: dict[str, torch.Tensor]):
        """Of queries and of passages, the right ones first, as `encode` reads them."""
        answers = inputs["completion_mask"].bool()
        pairs = len(answers) // 2
        asked = inputs["attention_mask"].bool() & ~answers
        texts = [ids[row] for ids, row in zip(inputs["input_ids"][:pairs], asked, strict=False)]
        texts += [ids[row] for ids, row in zip(inputs["input_ids"], answers, strict=True)]
        prompt = magnet.magnet_settings.prompt_text(None, None)
        tokenizer = magnet.tokenizer
        plain = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in texts]
        ids = magnet.text_tokenizer.ids([prompt + text for text in plain])
        batch = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], True)
        lengths = torch.tensor([[len(row)] for row in ids])
        mask = (torch.arange(batch.shape[1]) < lengths).long()  # (3 x pairs, length)
        vectors = magnet.pool(batch.to(answers.device), mask.to(answers.device))
        return vectors[:pairs], vectors[pairs:]


@torch.no_grad()
def mean_log_probabilities(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Of each passage's tokens after its query, (2 x pairs,)."""
    ids, answers = inputs["input_ids"], inputs["completion_mask"][:, 1:]
    logits = model(input_ids=ids, attention_mask=inputs["attention_mask"]).logits[:, :-1]
    scores = logits.float().log_softmax(dim=-1).gather(2, ids[:, 1:, None])[..., 0]
    return (scores * answers).sum(dim=1) / answers.sum(dim=1)


def agreement(
    queries: torch.Tensor, passages: torch.Tensor, scores: torch.Tensor, temperature: float
) -> torch.Tensor:
    """How far cosines say otherwise than generation which passage belongs to the query.

    Args:
        queries: (pairs, hidden).
        passages: (2 x pairs, hidden) the right ones, then the wrong ones.
        scores: (pairs, 2) of generation, of which no gradient is taken.
        temperature: of the cosines.

    Returns:
        () the divergence of softmax(cosines) from softmax(scores), the mean over pairs.
    """
    both = passages.view(2, *queries.shape)
    cosines = F.cosine_similarity(queries, both, dim=-1).T  # (pairs, 2)
    said = F.log_softmax(cosines / temperature, dim=-1)
    return F.kl_div(said, scores.softmax(dim=-1), reduction="batchmean")


def preferences(triplets: list[dict[str, str]]) -> Dataset:
    """Triplets in trl's columns; a passage begins after a space."""
    return Dataset.from_list([
        {"prompt": row["anchor"], "chosen": " " + row["positive"], "rejected": " " + row["negative"]}
        for row in triplets
    ])  # fmt: skip


if __name__ == "__main__":
    main()
