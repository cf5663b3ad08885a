"""Training state that DeepSpeed keeps in shares, as whole tensors and back.

ZeRO 0 keeps everything on every rank; 1 and 2 share out the optimiser's state, in pieces of flat
groups of parameters; 3 the parameters too, those that are not trained among them. Tensors are
gathered and set one by one, through DeepSpeed's own means wherever those do it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainSpec
from .engine_state import (
    STEP,
    SavedState,
    load_network,
    load_optimizer,
    named_state,
    network_name,
    optimizer_name,
    optimizer_tensors,
    state_keys,
    trained,
)


def whole_tensors(
    engine: Any, network: nn.Module, train: TrainSpec
) -> Iterator[tuple[str, Tensor]]:
    """Network and optimiser, tensor by tensor; every rank must take all of them."""
    for name, value in named_state(network).items():
        with _gathered(engine, value):
            yield network_name(name), value
    if engine.zero_optimization_stage() == 0:
        yield from optimizer_tensors(engine.optimizer, network, train)
    elif any(engine.optimizer.state.values()):
        yield from _zero_state(engine, network, train)


def load_whole_tensors(
    engine: Any, network: nn.Module, saved: SavedState, train: TrainSpec
) -> None:
    """The inverse of `whole_tensors`; collective."""
    stage = engine.zero_optimization_stage()
    if stage < 3:
        load_network(network, saved)
    else:
        _load_shared_network(engine, network, saved)
    if stage == 0:
        load_optimizer(engine.optimizer, network, saved, train)
        return
    _set_masters(engine, network, saved)
    _load_zero_state(engine, network, saved, train)


def _zero_state(engine: Any, network: nn.Module, train: TrainSpec) -> Iterator[tuple[str, Tensor]]:
    from deepspeed.utils import safe_get_full_optimizer_state

    _link_state(engine)
    steps = [state[STEP] for state in engine.optimizer.state.values() if STEP in state]
    for name, parameter in trained(network).items():
        for key in state_keys(train):
            value = safe_get_full_optimizer_state(parameter, key)
            yield optimizer_name(name, key), value.view(_shape(parameter))
        if steps:  # all groups step together
            yield optimizer_name(name, STEP), steps[0]


@torch.no_grad()
def _load_shared_network(engine: Any, network: nn.Module, saved: SavedState) -> None:
    import deepspeed

    for name, value in named_state(network).items():
        if not _is_shared(engine, value):
            value.copy_(saved[network_name(name)])
            continue
        with deepspeed.zero.GatheredParameters([value], modifier_rank=0):
            value.copy_(saved[network_name(name)])


def _set_masters(engine: Any, network: nn.Module, saved: SavedState) -> None:
    """The optimiser's own copy of the parameters."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    for name, parameter in trained(network).items():
        value = saved[network_name(name)]
        if _is_shared(engine, parameter):
            safe_set_local_fp32_param(parameter, _share(parameter, value))
        else:
            safe_set_full_fp32_param(parameter, value)


def _load_zero_state(engine: Any, network: nn.Module, saved: SavedState, train: TrainSpec) -> None:
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    zero, keys = engine.optimizer, state_keys(train)
    zero.state.clear()
    parameters = trained(network)
    steps = [saved[n] for p in parameters if (n := optimizer_name(p, STEP)) in saved]
    if not any(optimizer_name(p, key) in saved for p in parameters for key in keys):
        return
    _make_state(engine, keys, max(steps, default=None))
    for name, parameter in parameters.items():
        for key in keys:
            if (full_name := optimizer_name(name, key)) not in saved:
                continue  # never had a gradient: zeros
            if _is_shared(engine, parameter):
                safe_set_local_optimizer_state(parameter, _share(parameter, saved[full_name]), key)
            else:
                safe_set_full_optimizer_state(parameter, saved[full_name], key)


def _make_state(engine: Any, keys: tuple[str, ...], step: Tensor | None) -> None:
    """Zeros where the first step would make them."""
    zero = engine.optimizer
    if engine.zero_optimization_stage() == 3:
        flat_groups = zero.fp32_partitioned_groups_flat
    else:
        flat_groups = zero.single_partition_of_fp32_groups
    for flat in flat_groups:
        zero.state[flat] = {key: torch.zeros_like(flat, requires_grad=False) for key in keys}
        if step is not None:
            zero.state[flat][STEP] = step.clone()
    _link_state(engine)


def _link_state(engine: Any) -> None:
    """Let ZeRO 1 and 2 know the state of all groups of parameters.

    DeepSpeed 0.19 does it once, after the first step of the first group, when the other groups
    have none.
    """
    if engine.zero_optimization_stage() < 3:
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def _is_shared(engine: Any, value: Tensor) -> bool:
    """Whether ranks hold shares of this tensor."""
    return engine.zero_optimization_stage() == 3 and hasattr(value, "ds_id")


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _share(parameter: Any, value: Tensor) -> Tensor:
    """This rank's piece of a whole tensor; the last ones are filled up with zeros."""
    piece = parameter.ds_tensor
    size = piece.ds_numel if hasattr(piece, "ds_numel") else piece.numel()
    rank = parameter.ds_process_group.rank()
    out = torch.zeros(size, dtype=value.dtype)
    mine = value.flatten()[rank * size : (rank + 1) * size]
    out[: len(mine)] = mine
    return out


def _gathered(engine: Any, value: Tensor) -> AbstractContextManager[Any]:
    if not _is_shared(engine, value):
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([value])
    return context
