"""What a CUDA device must compute as the CPU does; skipped where there is none."""

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="there is no CUDA device")
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(skip)
