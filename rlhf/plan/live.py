"""How many bytes of tensors are alive, operation by operation."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the storages that operations make while it is entered, until each is freed.

    Seen from outside a kernel: what a kernel allocates for itself and frees before it returns is not counted. Units:
    bytes on one kind of device; `peak` since the last `mark`.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._kind = device.type
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.live = 0
        self.peak = 0

    def own(self, module: torch.nn.Module) -> None:
        """What is there already does not count."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._remember(tensor, 0)

    def mark(self) -> int:
        """The peak since the last mark; a new one begins."""
        peak, self.peak = self.peak, self.live
        return peak

    def _remember(self, tensor: torch.Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata

        def gone(_: Any) -> None:
            if self._known.pop(key, None) is not None:
                self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type == self._kind:
                storage = leaf.untyped_storage()
                if storage._cdata not in self._known:
                    self._remember(leaf, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result
