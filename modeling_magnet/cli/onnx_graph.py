"""The encoder as an ONNX graph: tokens in, sentence vectors out."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from ..masking import sliding_window
from ..pooling import pooled

OUTPUTS = ["last_hidden_state", "sentence_embedding"]


class Encoder(torch.nn.Module):
    """What `encode` computes of tokens that a tokenizer has framed by start and end already."""

    def __init__(self, model: Any):
        super().__init__()
        settings = model.magnet_settings
        self.decoder = model.base_model
        self.pooling = settings.pooling
        self.starts = settings.start_in_encode and settings.start_token_id is not None

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states (batch, length, hidden) and vectors (batch, hidden), padding on either side."""
        # the mask of an all-context span map; made by transformers' masking_utils it fixes the length
        seen = attention_mask.bool()[:, None, None].expand(-1, 1, input_ids.shape[1], -1)
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)  # as eager takes it, and sdpa
        hidden = self.decoder(
            input_ids=input_ids, attention_mask=mask, use_cache=False
        ).last_hidden_state
        return hidden, pooled(hidden, attention_mask, self.pooling, self.starts)


def write(model: Any, path: Path) -> None:
    """Write the graph with float32 weights; beyond 1.5 GB they lie beside it in `model.onnx.data`."""
    model.float().eval().requires_grad_(False)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    example = torch.tensor([[0, 1, 1], [1, 1, 0]])
    dimensions = {
        0: torch.export.Dim("batch"),
        1: torch.export.Dim("length", max=sliding_window(model.config)),
    }
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it misses is of torchvision
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                Encoder(model).eval(),
                (torch.zeros_like(example), example),
                dynamo=True,
                verbose=False,
                input_names=["input_ids", "attention_mask"],
                output_names=OUTPUTS,
                dynamic_shapes={"input_ids": dimensions, "attention_mask": dimensions},
            )
    finally:
        logger.setLevel(level)
    program.save(path)
