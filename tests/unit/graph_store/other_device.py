"""A device that is not the CPU, in ordinary memory: finds tensors that are on the wrong one.

Inside `OtherDevice`, tensors on `DEVICE` hold CPU tensors, to which everything is done that is done
to them. As on a real device, an operation on tensors of two devices is an error (but for single
numbers and for indexing with CPU indices), and so is `numpy`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

DEVICE = torch.device("privateuseone:0")
_aten = torch.ops.aten
_COPIES = (_aten._to_copy.default, _aten.copy_.default)
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class Elsewhere(Tensor):
    """A tensor that says that it is on `DEVICE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Any:
        made: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})

    def numpy(self, **_: Any) -> Any:
        raise TypeError("numpy sees only the CPU's tensors")

    def tolist(self) -> Any:
        return self.held.tolist()


class OtherDevice(TorchDispatchMode):
    """Where tensors can be made on `DEVICE`, in this thread."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    here = [x for x in tensors if not isinstance(x, Elsewhere) and x.ndim]
    if there and here and op not in _COPIES and not _has_indices_only(op, args, here):
        raise RuntimeError(f"{op} of tensors of two devices")
    device = kwargs.get("device")
    goes_there = bool(there) if device is None else torch.device(device).type == DEVICE.type
    if op is _aten.copy_.default:
        goes_there = isinstance(args[0], Elsewhere)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, Elsewhere) else x, (args, kwargs))
    if op is _aten.sqrt.default:  # correctly rounded, as on a real device; the CPU's is not always
        out = torch.from_numpy(np.asarray(np.sqrt(args[0].numpy())))
    else:
        out = op(*args, **kwargs)
    if not goes_there:
        return out
    known = {id(x.held): x for x in there}  # what an operation in place returns

    def send(x: Any) -> Any:
        return known.get(id(x)) if id(x) in known else Elsewhere(x)

    return tree_map(lambda x: send(x) if isinstance(x, Tensor) else x, out)


def _has_indices_only(op: Any, args: Any, here: list[Tensor]) -> bool:
    """Whether the tensors of the CPU are indices into one of the device."""
    if op not in _INDEXED or not isinstance(args[0], Elsewhere):
        return False
    return all(any(x is index for index in args[1]) for x in here)


class _Backend:
    """What torch asks of a device's module."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16]

    def _is_in_bad_fork(self) -> bool:
        return False


_setup_privateuseone_for_python_backend(backend_module=_Backend())
