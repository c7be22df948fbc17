# Copyright 2026 The transformers-jakiro authors.
# Licensed under the Apache License, Version 2.0. See the LICENSE file for details.
"""
Between the host and the device, where waiting costs.
"""

from collections.abc import Sequence

import torch


def reads_wait(device: torch.device) -> bool:
    """Whether the host waits for all that a device was given to do when it reads a tensor there."""
    return device.type != "cpu"


def send(values: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Integers as a tensor on a device, without waiting for it, as `torch.tensor(values, device=device)` does."""
    return torch.tensor(values, dtype=torch.long).to(device, non_blocking=True)


__all__ = ["reads_wait", "send"]
