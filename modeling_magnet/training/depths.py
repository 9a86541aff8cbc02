"""Computes a decoder's states after an early layer and after the last, in one pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..devices import view_of


class Tap(nn.Module):
    """A decoder layer that keeps its last output."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        """Run the layer, and keep its output."""
        self.output = self.layer(*args, **kwargs)
        return self.output


def at_two_depths(decoder: Any, num_layers: int) -> Callable:
    """A view of a decoder that also returns the states after its first layers, through its final norm.

    `output_hidden_states` uses hooks, which a compiled layer does not call.

    Args:
        decoder: the base model of a causal language model.
        num_layers: how many layers come before the early states.

    Returns:
        A function of the decoder's arguments. Its `last_hidden_state` is (batch, length, 2 * hidden): the
        states after the last layer and those after `num_layers`, side by side.
    """
    norm = decoder.norm if hasattr(decoder, "norm") else decoder.final_layernorm  # Phi's

    def forward(**arguments):
        tap, view = Tap(decoder.layers[num_layers - 1]), view_of(decoder)
        layers = [*decoder.layers[: num_layers - 1], tap, *decoder.layers[num_layers:]]
        view._modules = decoder._modules | {"layers": nn.ModuleList(layers)}
        output = view(**arguments)
        states = [output.last_hidden_state, norm(tap.output)]
        output.last_hidden_state = torch.cat(states, dim=-1)
        return output

    return forward
