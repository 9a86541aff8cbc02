"""Defines the losses, and the model class that computes them in one forward pass (MAGNET, section 3.2)."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from modeling_magnet import MagnetLlamaForCausalLM, MagnetMixin

from .collator import IGNORE
from .depths import at_two_depths

Head = Callable[[torch.Tensor], torch.Tensor]
"""Turns hidden states into logits."""

HEAD_CHUNK = 512
"""How many labelled tokens go through the output head at a time."""

LENGTH_GROUPS, MIN_GROUP_SIZE = 4, 24
"""The most forward passes over the sentences of a batch, and the fewest sentences in each.

Sentences are sorted by length, so that few positions are padding. Smaller passes cost more than padding.
"""


@dataclass
class ObjectiveOutput(ModelOutput):
    """What one forward pass returns: sums per block, so that they can be normalised over any batch.

    Attributes:
        mntp, msg, ntp: (blocks,) summed cross-entropy of the labelled tokens.
        mntp_correct: (blocks,) how many masked tokens get the highest score.
        divergence: (blocks,) summed Kullback-Leibler divergence from the base model, in nats, at
            the tokens labelled by `ntp_labels`.
        pair_vectors: (views, pairs, hidden) projected sentence vectors, in float32.
        early_vectors: (views, pairs, hidden) the vectors after only the first layers.
    """

    mntp: torch.Tensor | None = None
    mntp_correct: torch.Tensor | None = None
    msg: torch.Tensor | None = None
    ntp: torch.Tensor | None = None
    divergence: torch.Tensor | None = None
    pair_vectors: torch.Tensor | None = None
    early_vectors: torch.Tensor | None = None


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy in float32, (tokens,), and whether the target gets the highest score, (tokens,)."""
    logits = logits.float()  # (tokens, vocabulary)
    return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


def labelled_cross_entropy(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: Head,
    in_place: bool = False,
    losses: Callable = token_losses,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of the labelled tokens, each predicted by the output one position before.

    Only outputs that predict a labelled token go through the head, in chunks that are recomputed in the
    backward pass. So memory does not grow with batch size times vocabulary.

    Args:
        hidden: (batch, length, hidden) last hidden states.
        labels: (batch, length) token ids at the tokens to predict, `IGNORE` elsewhere.
        head: from hidden states to logits.
        in_place: predict each token from the output at its own position.
        losses: `token_losses`, compiled or not.

    Returns:
        (batch,) the sum over each row in float32, 0 for a row without labels; and (batch,) how many of its
        tokens get the highest score.
    """

    def losses_of(states, targets):
        return losses(head(states), targets)

    states, targets, rows = _labelled(hidden, labels, in_place)
    values, correct = _in_chunks(losses_of, HEAD_CHUNK, states, targets)
    return _sum_rows(values, rows, len(labels)), _sum_rows(correct, rows, len(labels))


def labelled_divergence(
    hidden: torch.Tensor, base_hidden: torch.Tensor, labels: torch.Tensor, head: Head
) -> torch.Tensor:
    """Kullback-Leibler divergence from the base model's predictions of the labelled tokens.

    Args:
        hidden: (batch, length, hidden) last hidden states.
        base_hidden: (batch, length, hidden) the base model's.
        labels: (batch, length) `IGNORE` where nothing is predicted.
        head: from hidden states to logits, for both.

    Returns:
        (batch,) the sum over each row, in nats.
    """

    def divergence_of(states, base_states):
        with torch.no_grad():
            base = head(base_states).float().log_softmax(-1)  # (chunk, vocabulary)
        own = head(states).float().log_softmax(-1)
        return (F.kl_div(own, base, reduction="none", log_target=True).sum(-1),)

    states, _, rows = _labelled(hidden, labels)
    base_states, _, _ = _labelled(base_hidden, labels)
    (values,) = _in_chunks(divergence_of, HEAD_CHUNK, states, base_states)
    return _sum_rows(values, rows, len(labels))


def info_nce(
    queries: torch.Tensor,
    candidates: torch.Tensor,
    temperature: float,
    left_out: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE on cosine similarity (equation 3), in float32 even under autocast.

    Args:
        queries: (queries, hidden).
        candidates: (candidates, hidden), as many as queries or more: candidate i is the positive of
            query i, and all others are its negatives.
        temperature: the similarities are divided by it.
        left_out: (queries, candidates) True where a candidate is not a negative; see `false_negatives`.

    Returns:
        () the mean over the queries.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, candidates = (
            F.normalize(vectors.float(), dim=-1) for vectors in (queries, candidates)
        )
        similarity = queries @ candidates.T  # (queries, candidates)
        if left_out is not None:
            similarity = similarity.masked_fill(left_out, -torch.inf)
        targets = torch.arange(len(queries), device=queries.device)
        return F.cross_entropy(similarity / temperature, targets)


def false_negatives(guide: torch.Tensor, margin: float, relative: bool) -> torch.Tensor:
    """Find candidates too similar to a query to be negatives, by a guide (GISTEmbed, Solatorio 2024).

    These are all other candidates whose cosine with the query, by the guide's vectors, is above that of
    the query's positive minus the margin.

    Args:
        guide: (views, pairs, size) the guide's vectors of queries, positives and hard negatives.
        margin: a difference of cosines or, if `relative`, a share of the positive's cosine.
        relative: which of the two the margin is.

    Returns:
        (pairs, (views - 1) x pairs) for `info_nce`. The positive itself is never among them.
    """
    guide = F.normalize(guide.float(), dim=-1)
    similarity = guide[0] @ guide[1:].flatten(0, 1).T  # (pairs, candidates)
    positive = similarity.diagonal()[:, None]
    limit = positive - (positive.abs() * margin if relative else margin)
    return (similarity > limit).fill_diagonal_(False)


def cosent(vectors: torch.Tensor, scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """CoSENT: pairs with a higher score should have a higher cosine (Su 2022). In float32.

        log(1 + sum over all i, j with score[i] < score[j] of exp((cosine[i] - cosine[j]) / temperature))

    Args:
        vectors: (2, pairs, hidden).
        scores: (pairs,).
        temperature: the cosines are divided by it.

    Returns:
        () the loss; 0 if all scores are equal.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        one, two = F.normalize(vectors.float(), dim=-1)
        cosines = (one * two).sum(-1) / temperature  # (pairs,)
        wrong = cosines[:, None] - cosines  # (pairs, pairs) of i over j
        wrong = wrong[scores[:, None] < scores]
        return torch.cat([wrong.new_zeros(1), wrong]).logsumexp(dim=0)


def supervised_contrastive(
    vectors: torch.Tensor, classes: torch.Tensor, temperature: float
) -> torch.Tensor:
    """SupCon: texts of a class are each other's positives, all others negatives (Khosla et al. 2020, L_out).

        mean over i of mean over p of -log(exp(cosine[i, p] / temperature) / sum over all j but i of the same)

    Args:
        vectors: (texts, hidden).
        classes: (texts,) numbers.
        temperature: the cosines are divided by it.

    Returns:
        () the mean over texts that share their class with another one; 0 if there are none.
    """
    with torch.autocast(vectors.device.type, enabled=False):
        vectors = F.normalize(vectors.float(), dim=-1)
        itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        cosines = (vectors @ vectors.T / temperature).masked_fill(itself, -torch.inf)
        log_shares = cosines.log_softmax(-1).masked_fill(itself, 0)  # (texts, texts)
        positive = (classes[:, None] == classes) & ~itself
        counts = positive.sum(-1)
        losses = -(log_shares * positive).sum(-1) / counts.clamp(min=1)
        return losses.sum() / (counts > 0).sum().clamp(min=1)


def distillation(vectors: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far the texts' similarities are from a teacher's, in float32.

    A softmax over a text's cosines with all others, divided by the temperature, gives a distribution. The
    loss is the Kullback-Leibler divergence of the student's distribution from the teacher's. It compares
    similarities, not vectors, so the teacher's vectors may have any size.

    Args:
        vectors: (texts, hidden) of the student.
        teacher: (texts, size) of the teacher.
        temperature: the cosines of both are divided by it.

    Returns:
        () the mean over the texts, in nats.
    """

    def over_the_others(vectors):
        vectors = F.normalize(vectors.float(), dim=-1)
        cosines = vectors @ vectors.T / temperature  # (texts, texts)
        others = ~torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
        return cosines[others].view(len(vectors), -1).log_softmax(-1)  # (texts, texts - 1)

    with torch.autocast(vectors.device.type, enabled=False):
        own, target = over_the_others(vectors), over_the_others(teacher)
        return F.kl_div(own, target, reduction="batchmean", log_target=True)


class ObjectivesMixin(MagnetMixin):
    """Adds what training needs to a MAGNET class: a projection head, and a forward pass of all objectives."""

    # A base has no projection, and it starts as the identity.
    _keys_to_ignore_on_load_missing = ["projection.weight"]  # noqa: RUF012
    _token_losses: Callable = staticmethod(token_losses)

    def __init__(self, config):
        super().__init__(config)
        self.projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.post_init()

    # A run's checkpoints are plain ones of transformers, without code even where `AutoModel` has registered
    # the MAGNET class; `training.run_folders` writes the Magnet folder.
    save_pretrained = PreTrainedModel.save_pretrained  # type: ignore[assignment]
    _auto_class = None

    def _init_weights(self, module):
        super()._init_weights(module)
        own = getattr(self, "projection", None)  # does not exist yet while the base is initialised
        if own is not None and module is own:
            nn.init.eye_(own.weight)  # at first, the loss sees the vectors unchanged

    def forward(  # type: ignore[override]
        self,
        input_ids=None,
        span_ids=None,
        document_ids=None,
        position_ids=None,
        mntp_labels=None,
        msg_labels=None,
        ntp_labels=None,
        pair_input_ids=None,
        pair_attention_mask=None,
        masked_token_prediction: bool = False,
        divergence: bool = False,
        pair_chunk: int = 0,
        early_layers: int | None = None,
        **kwargs,
    ):
        """One pass for all objectives on a batch of `MagnetCollator`; without labels and pairs, the base's.

        What is computed from a tensor of labels, or from the pairs, is left out if the tensor is. The
        config's `attention_dropout` makes different views of a sentence, as in SimCSE: it works on the
        pairs, while blocks of text are read without it.

        Args:
            input_ids, span_ids, document_ids, position_ids, mntp_labels, msg_labels, ntp_labels,
                pair_input_ids, pair_attention_mask: from the collator.
            masked_token_prediction: predict masked tokens in place (appendix D).
            divergence: also compute the divergence from the model without its adapter, at `ntp_labels`.
            pair_chunk: how many sentences are in memory at a time; 0: all.
            early_layers: also return the sentence vectors after this many layers.

        Returns:
            `ObjectiveOutput`.
        """
        labels = {"mntp": mntp_labels, "msg": msg_labels, "ntp": ntp_labels}
        labels = {name: value for name, value in labels.items() if value is not None}
        if not labels and pair_input_ids is None:
            return super().forward(
                input_ids=input_ids, span_ids=span_ids, position_ids=position_ids, **kwargs
            )
        output = ObjectiveOutput()
        head = self._logits
        if labels:
            with self._attention_dropout_off():
                hidden = self._span_states(
                    input_ids, span_ids, document_ids=document_ids, position_ids=position_ids
                )  # (blocks, length, hidden)
            for name, value in labels.items():
                in_place = masked_token_prediction and name == "mntp"
                sums, correct = labelled_cross_entropy(
                    hidden, value, head, in_place, self._token_losses
                )
                setattr(output, name, sums)
                if name == "mntp":
                    output.mntp_correct = correct
            if divergence:
                rows = (ntp_labels != IGNORE).any(dim=1).nonzero()[:, 0]
                rows = rows if len(rows) else rows.new_zeros(1)  # all processes must run it
                documents = None if document_ids is None else document_ids[rows]
                with torch.no_grad(), self._adapter_off(), self._attention_dropout_off():
                    base_hidden = self._span_states(
                        input_ids[rows], span_ids[rows], document_ids=documents
                    )  # (rows, length, hidden)
                sums = labelled_divergence(hidden[rows], base_hidden, ntp_labels[rows], head)
                output.divergence = sums.new_zeros(len(hidden)).index_add(0, rows, sums)
        if pair_input_ids is not None:
            # With `pair_chunk`, recomputation gives what GradCache does (Gao et al. 2021): the loss sees
            # all vectors, memory holds the activations of one chunk, and dropout is replayed.
            ids, mask = pair_input_ids.flatten(0, 1), pair_attention_mask.flatten(0, 1)
            order = mask.sum(dim=1).argsort(stable=True)
            found = _in_chunks(
                partial(self._vectors, early_layers=early_layers),
                pair_chunk or max(math.ceil(len(ids) / LENGTH_GROUPS), MIN_GROUP_SIZE),
                ids[order],
                mask[order],
                recompute=pair_chunk > 0,
            )  # each (views x pairs, hidden)
            vectors = [
                rows[order.argsort()].unflatten(0, pair_input_ids.shape[:2]) for rows in found
            ]
            output.pair_vectors = vectors[0]
            output.early_vectors = vectors[1] if early_layers is not None else None
        return output

    def _vectors(self, ids, mask, early_layers: int | None) -> tuple[torch.Tensor, ...]:
        """Vectors (sentences, hidden) after the last layer, and with `early_layers` after that many layers."""
        if early_layers is None:
            return (self._project(self.pool(ids, mask)),)
        both = self._pool(ids, mask, partial(at_two_depths, num_layers=early_layers))
        return tuple(self._project(vectors) for vectors in both.chunk(2, dim=-1))

    def compile_layers(self) -> None:
        """Compile the decoder's layers and the token losses, in place, and nothing else.

        Dropout draws the same numbers as uncompiled, since the compiler's own are slow on a CPU.
        """
        layers: Any = self.base_model.layers
        for layer in layers:
            layer.compile(options={"fallback_random": True})
        self._token_losses = torch.compile(token_losses, dynamic=True)

    def _project(self, vectors: torch.Tensor) -> torch.Tensor:
        weight = next(self.projection.parameters(), vectors)
        return self.projection(vectors.to(weight.dtype)).float()

    @contextlib.contextmanager
    def _attention_dropout_off(self) -> Iterator[None]:
        rates: dict[Any, Any] = {
            module: module.attention_dropout
            for module in self.modules()
            if getattr(module, "attention_dropout", 0)
        }
        for module in rates:
            module.attention_dropout = 0.0
        try:
            yield
        finally:
            for module, rate in rates.items():
                module.attention_dropout = rate

    @contextlib.contextmanager
    def _adapter_off(self) -> Iterator[None]:
        layers = [module for module in self.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)


class MagnetLlamaForObjectives(ObjectivesMixin, MagnetLlamaForCausalLM):
    """A MAGNET Llama in training."""


def objectives_class_for(magnet_class: type[MagnetMixin]) -> type[ObjectivesMixin]:
    """The class that trains a MAGNET class: `MagnetQwen3ForObjectives` for `MagnetQwen3ForCausalLM`.

    Args:
        magnet_class: of `magnet_class_for`.

    Returns:
        The class, whose forward pass returns an `ObjectiveOutput`.
    """
    if magnet_class is MagnetLlamaForCausalLM:
        return MagnetLlamaForObjectives
    name = magnet_class.__name__.replace("ForCausalLM", "ForObjectives")
    return type(name, (ObjectivesMixin, magnet_class), {"__module__": __name__})


def _labelled(hidden, labels, in_place=False):
    """The states that predict labelled tokens, these tokens, and the rows that they are in."""
    if not in_place:
        hidden, labels = hidden[:, :-1], labels[:, 1:]
    rows, columns = (labels != IGNORE).nonzero(as_tuple=True)
    return hidden[rows, columns], labels[rows, columns], rows


def _sum_rows(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    return values.new_zeros(count, dtype=torch.float32).index_add(0, rows, values.float())


def _in_chunks(
    function: Callable[..., tuple[torch.Tensor, ...]],
    size: int,
    *tensors: torch.Tensor,
    recompute: bool = True,
) -> list[torch.Tensor]:
    """Apply a function to chunks of rows. `recompute` keeps the activations of one chunk at a time."""
    chunks = list(zip(*(tensor.split(size) for tensor in tensors), strict=True))
    if len(chunks) == 1:
        return list(function(*chunks[0]))
    if recompute:
        results = [checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        results = [function(*chunk) for chunk in chunks]
    return [torch.cat(parts) for parts in zip(*results, strict=True)]
