"""A process of a distributed run: trains each config that it is given, one after the other.

    torchrun --nproc-per-node 2 tests/training/worker.py [--fsdp | --zero2 | --zero3] CONFIG...

accelerate takes FSDP and DeepSpeed for accelerators alone; with a flag it is told that these CPUs are
some, and does on gloo what it would do on GPUs.
"""

import os
import sys

import torch
from accelerate import state

from modeling_magnet.training import report
from modeling_magnet.training.train import main

FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
ZERO = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    "ACCELERATE_GRADIENT_CLIPPING": "auto",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
    "DS_ACCELERATOR": "cpu",
}
"""What `accelerate launch` sets from the files in training/accelerate."""

SHARDED = {
    "--fsdp": FSDP,
    "--zero2": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "--zero3": ZERO | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
}


def take_cpus_for_accelerators() -> None:
    state.PartialState._prepare_backend = lambda *args, **kwargs: (
        "gloo",
        state.DistributedType.MULTI_GPU,
    )
    state.PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    report.draw_curves = lambda *curves: None  # a third of the time of a run this small
    configs = sys.argv[1:]
    if configs[0] in SHARDED:
        os.environ |= SHARDED[configs.pop(0)]
        take_cpus_for_accelerators()
    for config in configs:
        sys.argv[1:] = [config]
        main()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
