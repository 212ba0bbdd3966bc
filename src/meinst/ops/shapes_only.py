"""Modules built for their shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build modules on the meta device: they take no memory and draw no random numbers.

    Initializers are skipped: on the meta device, torch runs some through its compiler, which takes
    two seconds to import.
    """
    with torch.device("meta"), _SkipInitializers():
        yield


class _SkipInitializers(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))
