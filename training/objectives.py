"""The three losses and the model class that computes them in one forward pass (MAGNET, section 3.2)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from modeling_magnet import MagnetLlamaForCausalLM

from .collator import IGNORE


@dataclass
class ObjectiveOutput(ModelOutput):
    """What one forward pass yields: sums, so that they can be normalised over any batch.

    Attributes:
        mntp_sum: () summed cross-entropy of the masked tokens.
        msg_sum: () summed cross-entropy of the span tokens.
        pair_vectors: (2 x pairs, hidden) projected sentence vectors, sentences first.
    """

    mntp_sum: torch.Tensor | None = None
    msg_sum: torch.Tensor | None = None
    pair_vectors: torch.Tensor | None = None


def labelled_cross_entropy(
    hidden: torch.Tensor, labels: torch.Tensor, head: nn.Module
) -> torch.Tensor:
    """Summed cross-entropy of the labelled tokens, each predicted by the output one position before.

    Only outputs that have a label behind them go through the head.

    Args:
        hidden: (batch, length, hidden) last hidden states.
        labels: (batch, length) token ids at the tokens to predict, `IGNORE` elsewhere.
        head: from hidden states to logits.

    Returns:
        () in float32; 0 if there is no label.
    """
    labelled = labels[:, 1:] != IGNORE  # (batch, length - 1)
    logits = head(hidden[:, :-1][labelled])  # (labels, vocabulary)
    return F.cross_entropy(logits.float(), labels[:, 1:][labelled], reduction="sum")


def info_nce(
    vectors: torch.Tensor, positives: torch.Tensor, temperature: float, offset: int = 0
) -> torch.Tensor:
    """InfoNCE with in-batch negatives on cosine similarity (equation 3).

    Args:
        vectors: (queries, hidden).
        positives: (candidates, hidden); query i belongs to candidate offset + i, the other
            candidates are its negatives.
        temperature: the similarities are divided by it.
        offset: where this process's candidates begin among those of all processes.

    Returns:
        () the mean over the queries, in float32.
    """
    similarity = F.normalize(vectors.float(), dim=-1) @ F.normalize(positives.float(), dim=-1).T
    targets = torch.arange(len(vectors), device=vectors.device) + offset
    return F.cross_entropy(similarity / temperature, targets)


class MagnetLlamaForObjectives(MagnetLlamaForCausalLM):
    """A MAGNET Llama in training: with a projection head, and a forward pass of all objectives."""

    def __init__(self, config):
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()
        nn.init.eye_(self.projection.weight)  # the loss begins with the vectors as they are

    # A checkpoint of a run is transformers' own; `training.export` writes the MAGNET folder.
    save_pretrained = PreTrainedModel.save_pretrained  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self,
        input_ids=None,
        span_ids=None,
        mntp_labels=None,
        msg_labels=None,
        pair_input_ids=None,
        pair_attention_mask=None,
        **kwargs,
    ):
        """One pass for all objectives on a batch of `MagnetCollator`; without labels the base's.

        Leave out the blocks' or the pairs' tensors to leave out their objectives.

        Returns:
            `ObjectiveOutput`.
        """
        if mntp_labels is None and pair_input_ids is None:
            return super().forward(input_ids=input_ids, span_ids=span_ids, **kwargs)
        output = ObjectiveOutput()
        if mntp_labels is not None:
            hidden = self._span_states(input_ids, span_ids)  # (blocks, length, hidden)
            head = self.get_output_embeddings()
            output.mntp_sum = labelled_cross_entropy(hidden, mntp_labels, head)
            output.msg_sum = labelled_cross_entropy(hidden, msg_labels, head)
        if pair_input_ids is not None:
            output.pair_vectors = self.projection(self.pool(pair_input_ids, pair_attention_mask))
        return output
