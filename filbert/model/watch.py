"""Whether a module still is what it was when something was made of it: a native copy of its
weights, or recorded kernels that read them.

    seen = Watch(encoder)
    seen.changed()        # after `encoder.layer[0] = other`, `weight.data = ...`, `weight.add_(1)`
    seen.hooked()         # whether hooks wait inside

Both are asked at every call, so they are lists of numbers that are compared, no walk over modules.
"""

from __future__ import annotations

import itertools
import operator
from typing import Any

from torch import Tensor, nn

_version = operator.attrgetter("_version")


class Watch:
    """What `module` consists of now. `inside`: the parts whose hooks matter (else all)."""

    def __init__(self, module: nn.Module, *inside: nn.Module) -> None:
        modules = list(module.modules())
        self._holders: list[dict[str, Any]] = [m._parameters for m in modules if m._parameters]
        self._holders += [m._modules for m in modules if m._modules]
        self._modules = modules  # alive, so that no other one has an id of theirs
        self._weights = list(module.parameters())
        # alive, so that what is put in place of them by `.data =` has other addresses
        self._storages = [weight.untyped_storage() for weight in self._weights]
        self._counted = [weight for weight in self._weights if _counts(weight)]
        self._hooks = [
            hooks
            for part in (inside or (module,))
            for watched in part.modules()
            for hooks in (watched._forward_hooks, watched._forward_pre_hooks)
        ]
        self._stamp = self._now()

    def changed(self) -> bool:
        """Whether a part or a weight was put in place of another, or a weight written into."""
        return self._stamp != self._now()

    def hooked(self) -> bool:
        """Whether hooks wait that a call of something else would pass by."""
        return any(self._hooks)

    def _now(self) -> list[list[int]]:
        """What differs after a change: a list a question costs least."""
        return [
            [*map(id, itertools.chain.from_iterable(map(dict.values, self._holders)))],
            [*map(Tensor.data_ptr, self._weights)],
            [*map(_version, self._counted)],
        ]


def _counts(weight: Tensor) -> bool:
    """Whether it counts its changes: inference tensors, and what was made of them, do not."""
    try:
        return weight._version >= 0
    except RuntimeError:
        return False
