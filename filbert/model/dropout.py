"""Dropout (Srivastava et al. 2014) whose random numbers do not slow a CPU down.

PyTorch draws each Bernoulli number of a CPU tensor one after another with the Mersenne twister:
13 % of a fine-tuning step of MiniLM. Here a counter-mode generator (SFC64), seeded by one draw
from torch's own generator, gives 16 random bits an element. So `torch.manual_seed` still decides
everything, and gradient checkpointing still recomputes the same mask. The probability is kept to
within 1 / 65536. On other devices this is `torch.nn.functional.dropout`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def keep_mask(like: Tensor, prob: float) -> Tensor:
    """Shaped and typed as `like`: 0 with probability `prob`, else 1 / (1 - prob)."""
    if like.device.type != "cpu":
        return torch.empty_like(like).bernoulli_(1 - prob).div_(1 - prob)
    count = like.numel()
    seed = int(torch.randint(2**62, (), dtype=torch.int64))
    words = np.random.SFC64(seed).random_raw((count + 3) // 4)  # 4 elements from each 64 bits
    bits = torch.from_numpy(words.view(np.int16)[:count]).view(like.shape)
    dropped = min(round(prob * 65536), 65535)  # of the 65,536 values, this many mean zero
    kept = bits >= dropped - 32768
    return kept.to(like.dtype).mul_(65536 / (65536 - dropped))


def dropout(inputs: Tensor, prob: float) -> Tensor:
    """`inputs` with each element zeroed with probability `prob`, the others scaled up."""
    return inputs * keep_mask(inputs, prob) if prob else inputs
