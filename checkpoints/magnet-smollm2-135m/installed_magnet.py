"""Takes the model's class from the installed package modeling-magnet."""

from modeling_magnet import MagnetLlamaForCausalLM as MagnetLlamaForCausalLM
