"""Defines `MagnetTrainer`: transformers' Trainer with MAGNET's weighted sum of losses (equation 5)."""

from functools import partial
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from transformers import Trainer

from .arguments import OBJECTIVES, PAIR_OBJECTIVES, MagnetTrainingArguments
from .collator import IGNORE, MagnetCollator
from .config import MagnetConfig
from .data import MagnetDataset, Pairs
from .from_datasets import as_magnet, prepare
from .matryoshka import draw_sizes, shorter_losses
from .metrics import compute_metrics, text_figures
from .objectives import (
    ObjectiveOutput,
    cosent,
    distillation,
    false_negatives,
    info_nce,
    supervised_contrastive,
)

TOKEN_OBJECTIVES = ("mntp", "msg", "ntp")
"""The objectives that are means over labelled tokens."""

LOSS_INPUTS = ("pair_scores", "classes", "teacher_vectors")
"""What the collator gives to the losses and not to the model; (views or 1, pairs, ...)."""


class MagnetTrainer(Trainer):
    """Trains a model on text, on pairs with any hard negatives, on scored pairs, or on text and pairs.

    As in sentence-transformers, a dataset's columns decide what it is for (see `training.columns`):

    - `text`: MNTP and MSG.
    - Only texts, such as anchor, positive, negative: contrastive learning.
    - Two texts and a score from 0 to 1: CoSENT.
    - Texts with a class: the supervised contrastive loss.
    - Texts and a teacher's vectors: distillation.

    A dict of two datasets has text and pairs in the same steps.

    MNTP, MSG, NTP and the divergence are means over their labelled tokens in the whole optimizer step, over
    all processes and accumulated batches. The losses on sentence vectors (SSCL, CoSENT, the supervised
    contrastive loss and distillation) compare the sentences of all processes in one batch, and are averaged
    over accumulated batches. `pair_chunk` lets such a batch grow.

    Args:
        model: a Hub id, a folder, `smollm2`, or a model of `load_magnet`, which is trained in place.
        args: a `MagnetConfig`.
        data_collator: chosen by the columns.
        train_dataset: a `datasets.Dataset`, or a dict of one of text and one of pairs.
        eval_dataset: the same, for evaluation.
        peft_config: of a new adapter, such as `LoraConfig(r=16, target_modules="all-linear")`. None:
            train the model's own adapter further or, if it has none, all weights.
        kwargs: of transformers' `Trainer`.

    Raises:
        TypeError: something is of another kind.
        ValueError: columns fit no objective (the message says which columns would), a row cannot be used,
            or arguments do not fit each other.

    Example:
        >>> trainer = MagnetTrainer("smollm2", MagnetConfig(max_steps=10), train_dataset=triplets)
        >>> trainer.train()
        >>> trainer.save_model("mine")
        >>> model = load_magnet("mine")
    """

    args: MagnetTrainingArguments
    train_dataset: MagnetDataset
    eval_dataset: MagnetDataset | None
    data_collator: MagnetCollator

    def __init__(
        self,
        model: Any = None,
        args: MagnetTrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        peft_config: PeftConfig | None = None,
        **kwargs,
    ):
        if not isinstance(train_dataset, MagnetDataset):  # as `training.from_arguments` makes them
            args = MagnetConfig() if args is None else args
            if not isinstance(args, MagnetConfig):
                raise TypeError(f"args is {type(args).__name__}: give a MagnetConfig")
            if data_collator is not None:
                raise ValueError("data_collator is chosen by the columns: leave it out")
            ready = prepare(model, args, train_dataset, eval_dataset, peft_config)
            model, args, data_collator = ready.model, ready.args, ready.collator
            train_dataset, eval_dataset = ready.train_dataset, ready.eval_dataset
            kwargs.setdefault("processing_class", data_collator.tokenizer)
        super().__init__(
            model=model, args=args, data_collator=data_collator, train_dataset=train_dataset,
            eval_dataset=eval_dataset, **kwargs,
        )  # fmt: skip
        if train_dataset.pairs is not None:
            self._check_batch(train_dataset.pairs, train_dataset.pairs_per_block)
        dropout = getattr(getattr(self.model, "config", None), "attention_dropout", 0)
        reads_text = self.args.has_weight(*TOKEN_OBJECTIVES, "divergence")
        if self.args.gradient_checkpointing and dropout and reads_text:
            raise ValueError(
                f"attention_dropout is {dropout}, which is off while text is read, but gradient_checkpointing "
                "would read the text again with it: set one of them to 0 or false, or use lora_dropout"
            )
        self.compute_metrics = compute_metrics
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process sees {self.args.n_gpu} GPUs, which Trainer would drive by DataParallel: "
                "start one process per GPU (accelerate launch), or set CUDA_VISIBLE_DEVICES to one"
            )
        self.model_accepts_loss_kwargs = True  # both mean: compute_loss has already scaled the loss
        self.loss_is_scaled_for_ga = True
        self.accelerator.gradient_accumulation_steps = (
            1  # older releases divide in `backward` as well
        )
        self._logged: dict[
            str, tuple[torch.Tensor, float]
        ] = {}  # sum and steps since the last line

    def _check_batch(self, pairs: Pairs, pairs_per_item: int) -> None:
        """Raise if an objective has nothing to compare, so that its loss would not depend on the model."""
        for name, labels in (("cosent", pairs.scores), ("supcon", pairs.classes)):
            if self.args.has_weight(name) and labels is not None and len(np.unique(labels)) < 2:
                what = "score" if name == "cosent" else "class"
                raise ValueError(
                    f"all {len(pairs)} rows have the same {what}, but {name} needs different ones: give "
                    "others too"
                )
        batch = self.args.per_device_train_batch_size * pairs_per_item
        if pairs.classes is not None and batch % 2:
            raise ValueError(
                f"a batch has {batch} texts with a class, which come in twos: give an even number "
                "(per_device_train_batch_size)"
            )
        batch *= self.args.world_size
        views = len(pairs[0])
        for name, count, least, of, why in (
            (
                "sscl",
                batch * max(views - 1, 1),
                2,
                "positives and negatives",
                "a query needs a negative",
            ),
            ("cosent", batch, 2, "pairs", "it compares pairs"),
            ("supcon", batch, 4, "texts", "two of a class need negatives"),
            (
                "distil",
                batch * views,
                3,
                "texts",
                "it compares each text's similarities to the others",
            ),
        ):
            if self.args.has_weight(name) and count < least:
                raise ValueError(
                    f"a batch has {count} {of}, but {name} learns nothing from that, since {why}: give "
                    f"{least} or more (per_device_train_batch_size)"
                )

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """How many labels `TOKEN_OBJECTIVES` have in the optimizer step, over all processes, (3,)."""
        return self.accelerator.reduce(_count_labels(batch_samples).to(device), reduction="sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the objectives. In training, only those whose weight is not 0 are computed.

        Args:
            model: in its training class.
            inputs: of the collator.
            return_outputs: return the `ObjectiveOutput` too.
            num_items_in_batch: (3,) how many labels the step has, by objective.

        Returns:
            The loss, a scalar; with `return_outputs` also the outputs.

        Raises:
            FloatingPointError: in training, the loss is NaN or infinity.
        """
        weights = self.args.objective_weights(self.state.global_step)
        if model.training:
            inputs = self._select(inputs, weights)
            divergence = weights["divergence"] > 0
            counts, processes = num_items_in_batch, self.args.world_size
            batches = self.current_gradient_accumulation_steps
            layers, width = draw_sizes(self.args, self.state.global_step)
        else:
            divergence, processes, batches, layers, width = False, 1, 1, None, None
            counts = _count_labels([inputs])
        outputs: ObjectiveOutput = model(
            **{name: value for name, value in inputs.items() if name not in LOSS_INPUTS},
            divergence=divergence,
            masked_token_prediction=self.args.masked_token_prediction,
            pair_chunk=self.args.pair_chunk,
            early_layers=layers,
        )
        # The Trainer averages losses and gradients over processes, so sums are scaled by their number.
        losses: dict[str, torch.Tensor] = {}
        count = dict(zip(TOKEN_OBJECTIVES, counts.clamp(min=1).tolist(), strict=True))
        count |= {"divergence": count["ntp"], "mntp_correct": count["mntp"]}
        for name in (*TOKEN_OBJECTIVES, "divergence", "mntp_correct"):
            if name in outputs:
                losses[name] = outputs[name].sum() * processes / count[name]
        if outputs.pair_vectors is not None:
            early = outputs.early_vectors
            found = self._pair_losses(
                outputs.pair_vectors, early, inputs, weights, processes, width
            )
            for name, value in found.items():
                value = value / batches
                # Equal on all processes, but with the gradient of its own vectors only: their sum is needed.
                losses[name] = value + (processes - 1) * (value - value.detach())
        weights = weights | {"matryoshka": 1.0}
        loss = sum(
            weights[name] * losses[name] for name in (*OBJECTIVES, "matryoshka") if name in losses
        )
        if model.training:
            self._check_and_note(loss, losses, batches)
        return (loss, outputs) if return_outputs else loss

    def _pair_losses(
        self,
        vectors: torch.Tensor,
        early: torch.Tensor | None,
        inputs: dict,
        weights: dict[str, float],
        processes: int,
        width: int | None,
    ) -> dict[str, torch.Tensor]:
        """The losses that have a weight, on the sentence vectors (views, pairs, hidden) of all processes.

        `matryoshka` is their sum on shorter and on early vectors, already weighted.
        """
        labels = {name: inputs[name] for name in LOSS_INPUTS if name in inputs}
        if processes > 1:
            vectors = self._gather_with_gradient(vectors)
            early = None if early is None else self._gather_with_gradient(early)
            labels = {name: self._gather_with_gradient(value) for name, value in labels.items()}
        losses_of = partial(self._losses_on_vectors, labels=labels, weights=weights)
        losses = losses_of(vectors)
        if losses and (early is not None or width is not None):
            shorter = shorter_losses(losses_of, vectors, early, width, self.args.temperature)
            weighted = [weights[name] * loss for name, loss in shorter.items()]
            losses["matryoshka"] = torch.stack(weighted).sum()
        return losses

    def _losses_on_vectors(
        self, vectors: torch.Tensor, labels: dict[str, torch.Tensor], weights: dict[str, float]
    ) -> dict[str, torch.Tensor]:
        """The losses that have a weight, on sentence vectors (views, pairs, hidden)."""
        temperature = self.args.temperature
        losses: dict[str, torch.Tensor] = {}
        if weights["sscl"]:
            left_out = None
            if self.args.guide_margin is not None:
                relative = self.args.guide_margin_strategy == "relative"
                guide = labels["teacher_vectors"]
                left_out = false_negatives(guide, self.args.guide_margin, relative)
            candidates = vectors[1:].flatten(0, 1)
            losses["sscl"] = info_nce(vectors[0], candidates, temperature, left_out)
        if weights["cosent"]:
            losses["cosent"] = cosent(vectors, labels["pair_scores"][0], temperature)
        if weights["supcon"]:
            classes = labels["classes"][0]
            losses["supcon"] = supervised_contrastive(vectors[0], classes, temperature)
        if weights["distil"]:
            texts, teacher = vectors.flatten(0, 1), labels["teacher_vectors"].flatten(0, 1)
            losses["distil"] = distillation(texts, teacher, temperature)
        return losses

    def _select(self, inputs: dict, weights: dict[str, float]) -> dict:
        """The inputs that the objectives with a weight need."""
        wanted = {f"{name}_labels" for name in TOKEN_OBJECTIVES if weights[name]}
        wanted |= {"ntp_labels"} if weights["divergence"] else set()
        if not wanted <= inputs.keys():
            raise ValueError(f"{sorted(wanted)} have a weight, but the run has no text: set text")
        of_pairs = [name for name in PAIR_OBJECTIVES if weights[name]]
        if of_pairs and "pair_input_ids" not in inputs:
            raise ValueError(
                f"{' and '.join(of_pairs)} has a weight, but the batch has no pairs: set pairs_per_block"
            )
        if wanted:
            wanted |= {"input_ids", "span_ids", "document_ids", "position_ids"}
        if of_pairs:
            wanted |= {"pair_input_ids", "pair_attention_mask", *LOSS_INPUTS}
        return {name: value for name, value in inputs.items() if name in wanted}

    def _gather_with_gradient(self, vectors: torch.Tensor) -> torch.Tensor:
        """Gather to (views, processes x pairs, hidden). Only this process's part has a gradient."""
        everyone = self.accelerator.gather(vectors.detach()[None])  # (processes, views, pairs, ...)
        parts = list(everyone.unbind(0))
        parts[self.accelerator.process_index] = vectors
        return torch.cat(parts, dim=1)

    def _check_and_note(self, loss, losses: dict[str, torch.Tensor], batches: int) -> None:
        if not torch.isfinite(loss):
            shown = ", ".join(f"{name} {value.item():.4g}" for name, value in losses.items())
            raise FloatingPointError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} ({shown}): try a "
                "lower learning_rate, or bf16 in place of fp16; earlier checkpoints are intact"
            )
        for name, value in losses.items():
            total, steps = self._logged.get(name, (torch.zeros((), device=value.device), 0.0))
            self._logged[name] = (total + value.detach(), steps + 1 / batches)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write what `load_magnet` opens: the Magnet folder, or the adapter with its settings and code.

        The Trainer's own checkpoints, to resume from, are plain ones of transformers.

        Args:
            output_dir: by default that of the arguments.
            _internal_call: set by the Trainer.

        Raises:
            ValueError: the weights are sharded over processes.
        """
        if _internal_call:
            return super().save_model(output_dir, _internal_call)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "the weights are sharded: train with the command modeling_magnet.training.train, which "
                "gathers them"
            )
        with as_magnet(self.accelerator.unwrap_model(self.model)) as model:
            model.save_pretrained(
                output_dir or str(self.args.output_dir), is_main_process=self.args.should_save
            )

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        """Load the adapter of a model that brought its own. The Trainer would look for whole weights."""
        own: Any = self.accelerator.unwrap_model(model or self.model)
        if not _has_own_adapter(own):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        weights = load_peft_weights(resume_from_checkpoint, device="cpu")
        weights = {name.removeprefix("base_model.model."): w for name, w in weights.items()}
        set_peft_model_state_dict(own, weights, own.active_adapters()[0])

    def _load_best_model(self) -> None:
        """Load the best adapter of a model that brought its own, as in `_load_from_checkpoint`."""
        if not _has_own_adapter(self.accelerator.unwrap_model(self.model)):
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        scaled = (
            getattr(self.accelerator, "scaler", None) is not None
        )  # fp16 skips such steps itself
        if norm is not None and not scaled and not torch.isfinite(torch.as_tensor(norm)):
            raise FloatingPointError(
                f"the gradient's norm is {norm} at step {self.state.global_step + 1}, although the loss was "
                "finite: try a lower learning_rate; earlier checkpoints are intact"
            )
        return norm

    def log(self, logs, *args, **kwargs):
        """Add each objective's mean since the last log line, over all processes."""
        if "loss" in logs and self._logged:
            names = list(self._logged)
            sums = torch.stack([self._logged[name][0].float() for name in names])
            means = self.accelerator.reduce(sums, reduction="mean")
            for name, mean in zip(names, means.tolist(), strict=True):
                shown = "mntp_accuracy" if name == "mntp_correct" else name
                logs[shown] = round(mean / self._logged[name][1], 6)
            self._logged.clear()
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, dataloader, *args, **kwargs):
        """As in the Trainer, which passes what `prediction_step` returns to `compute_metrics`."""
        self._pairs_per_item = dataloader.dataset.pairs_per_block
        return super().evaluation_loop(dataloader, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Figures of held-out items for `compute_metrics`, which do not depend on the current weights."""
        inputs = self._prepare_inputs(inputs)
        figures: dict[str, torch.Tensor] = {}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
            items = 0
            if "input_ids" in inputs:
                figures["text"] = text_figures(model, inputs, outputs)
                items = len(figures["text"])
            if outputs.pair_vectors is not None:
                vectors = outputs.pair_vectors[:2]  # (views, pairs, hidden)
                per_item = self._pairs_per_item
                items = vectors.shape[1] // per_item
                figures["vectors"] = vectors.unflatten(1, (items, per_item)).permute(1, 2, 0, 3)
                if "pair_scores" in inputs:
                    figures["scores"] = inputs["pair_scores"][0].unflatten(0, (items, per_item))
                if "classes" in inputs:
                    figures["classes"] = inputs["classes"][0].unflatten(0, (items, per_item))
                if "teacher_vectors" in inputs:
                    teacher = inputs["teacher_vectors"][:2].unflatten(1, (items, per_item))
                    figures["teacher"] = teacher.permute(1, 2, 0, 3)
        return loss.detach(), figures, torch.zeros(items, device=loss.device)


def _has_own_adapter(model: Any) -> bool:
    """Whether a model was loaded with its adapter, so that no `PeftModel` wraps it."""
    return not isinstance(model, PeftModel) and getattr(model, "_hf_peft_config_loaded", False)


def _count_labels(batches: list[dict]) -> torch.Tensor:
    counts = torch.zeros(len(TOKEN_OBJECTIVES), dtype=torch.long)
    for batch in batches:
        for i, name in enumerate(TOKEN_OBJECTIVES):
            if f"{name}_labels" in batch:
                counts[i] += (batch[f"{name}_labels"][:, 1:] != IGNORE).sum().cpu()
    return counts
