"""A process of a distributed run: trains each config that it is given, one after the other.

    torchrun --nproc-per-node 2 tests/training/worker.py [--fsdp] CONFIG...

accelerate takes FSDP for accelerators alone; with `--fsdp` it is told that these CPUs are some, and
does on gloo what it would do on GPUs.
"""

import os
import sys

import torch
from accelerate import state

from training.train import main


def fsdp_on_cpu() -> None:
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    }
    state.PartialState._prepare_backend = lambda *args, **kwargs: (
        "gloo",
        state.DistributedType.MULTI_GPU,
    )
    state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    configs = sys.argv[1:]
    if configs[0] == "--fsdp":
        fsdp_on_cpu()
        del configs[0]
    for config in configs:
        sys.argv[1:] = [config]
        main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
