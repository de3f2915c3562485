"""ModelOutput: what a model returns. Read it by name, by number, or unpack it as a tuple."""

from __future__ import annotations

from typing import Any


class ModelOutput(dict[str, Any]):
    """A dictionary of the results that exist, in order; an absent one reads as None by attribute.

    `output.logits`, `output["logits"]` and `output[0]` are the same tensor, as users of
    Transformers expect.
    """

    def __init__(self, **values: Any) -> None:
        super().__init__({name: value for name, value in values.items() if value is not None})
        object.__setattr__(self, "_absent", frozenset(values) - frozenset(self))

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if name in self.__dict__.get("_absent", ()):
            return None
        raise AttributeError(f"this output has no {name!r}; it holds {', '.join(self)}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """The results that exist, in order."""
        return tuple(self.values())
