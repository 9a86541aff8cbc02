"""transformers' Trainer with MAGNET's weighted sum of three losses (equation 5)."""

import torch
from torch.utils.data import SequentialSampler
from transformers import Trainer

from .arguments import MagnetTrainingArguments
from .collator import IGNORE
from .data import MagnetDataset
from .objectives import ObjectiveOutput, info_nce


class MagnetTrainer(Trainer):
    """Trains a model of `training.objectives` on a `MagnetDataset`.

    MNTP and MSG are means over the labelled tokens of the whole accumulated batch, each over its
    own; SSCL is the mean over the accumulated batches (its negatives are those of one batch).
    """

    args: MagnetTrainingArguments
    train_dataset: MagnetDataset

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # both say: compute_loss has scaled the loss already
        self.loss_is_scaled_for_ga = True
        self.accelerator.gradient_accumulation_steps = 1  # older ones divide in `backward` as well
        self._logged: dict[str, tuple[float, float]] = {}  # sum and steps since the last line
        processes, devices = self.args.world_size, self.args.n_gpu
        if processes > 1 or devices > 1:
            raise ValueError(
                f"got {processes} processes with {devices} GPUs each: this version trains on one of "
                "each, since negatives of other devices are not gathered yet; set "
                "CUDA_VISIBLE_DEVICES to one GPU"
            )

    def _get_train_sampler(self, *args, **kwargs):
        return SequentialSampler(self.train_dataset)  # the dataset is in the run's order already

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device):
        """(2,) how many labels MNTP and MSG have in the accumulated batch."""
        counts = torch.zeros(2, dtype=torch.long)
        for batch in batch_samples:
            for i, name in enumerate(("mntp_labels", "msg_labels")):
                counts[i] += (batch[name][:, 1:] != IGNORE).sum()
        return counts.to(device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The weighted sum of the objectives whose weight is not 0 at this step."""
        weights = self.args.objective_weights(self.state.global_step)
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        batches = self.current_gradient_accumulation_steps if model.training else 1
        inputs = dict(inputs)
        if not weights["sscl"]:
            inputs = {k: v for k, v in inputs.items() if not k.startswith("pair_")}
        elif "pair_input_ids" not in inputs:
            raise ValueError("sscl has a weight, but the batch has no pairs: set pairs_per_block")
        if not weights["mntp"] and not weights["msg"]:
            inputs = {k: v for k, v in inputs.items() if k.startswith("pair_")}
        outputs: ObjectiveOutput = model(**inputs)
        losses: dict[str, torch.Tensor] = {}
        if outputs.mntp_sum is not None:
            mntp_count, msg_count = num_items_in_batch.clamp(min=1)
            losses |= {"mntp": outputs.mntp_sum / mntp_count, "msg": outputs.msg_sum / msg_count}
        if outputs.pair_vectors is not None:
            sentences, paraphrases = outputs.pair_vectors.chunk(2)
            losses["sscl"] = info_nce(sentences, paraphrases, self.args.temperature) / batches
        if model.training:
            for name, value in losses.items():
                total, steps = self._logged.get(name, (0.0, 0.0))
                self._logged[name] = (total + value.item(), steps + 1 / batches)
        loss = sum(weights[name] * value for name, value in losses.items())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs, *args, **kwargs):
        """Add each objective's mean since the last log line."""
        if "loss" in logs:
            for name, (total, steps) in self._logged.items():
                logs[name] = round(total / steps, 4)
            self._logged.clear()
        super().log(logs, *args, **kwargs)
