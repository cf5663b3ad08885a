"""Weights from a file into a backbone: state dicts in torchvision's layout, or a finished run.

A file's keys may begin with `module.`, `_orig_mod.` or `backbone.` (data parallel wrappers,
compiled networks, `model.safetensors` of a run); those are taken off, and a classifier's tensors
are left out. Files are read as tensors alone: nothing in them is executed.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ...datasets.files import join, read_bytes
from ...datasets.limits import TooLargeError, check_unpacked

_PREFIXES = ("module.", "_orig_mod.", "backbone.")
_CLASSIFIERS = ("fc", "classifier", "head", "linear")
_NESTED = ("state_dict", "model_state_dict", "model")
_TORCH_FILES = (".pth", ".pt")
_SHOWN = 4


@torch.no_grad()
def load_weights(backbone: nn.Module, uri: str) -> None:
    """Copy the weights at `uri` into the backbone.

    Weights of three input channels fit a backbone of one by being summed over the channels: the
    answer to a grey image is what the given network answers to it as three equal channels.
    Counters of batch norm (`num_batches_tracked`) may be absent, as in files of old; so may
    `project`, the linear layer to another `feature_dim`, which then stays as it was drawn.

    Args:
        uri: A `.safetensors`, `.pth` or `.pt` file, or a run's directory; any fsspec URI.

    Raises:
        ValueError: Unreadable, not made of tensors, numbers that are not finite, or keys and
            shapes that do not fit; the message names them and says what to do.
    """
    own = backbone.state_dict()
    given = _backbone_part(read_tensors(uri), own)
    given = {key: _summed_to_grey(value, own.get(key)) for key, value in given.items()}
    _check_fits(own, given, uri)
    broken = [k for k, v in given.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise ValueError(
            f"model.weights = {uri!r} holds NaN or infinity in {_some(broken)}; the training that "
            "wrote it diverged, take an earlier file"
        )
    backbone.load_state_dict({**own, **given})


def read_tensors(uri: str) -> dict[str, Tensor]:
    """A file's tensors by name, on the CPU; see `load_weights`.

    Raises:
        ValueError: No such file, an unknown kind of file, or one that holds other things.
    """
    if not uri.endswith((".safetensors", *_TORCH_FILES)):
        uri = join(uri, "model.safetensors")
    try:
        data = read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"model.weights: there is no {uri}; give a .safetensors, .pth or .pt file, or the "
            "directory of a finished run"
        ) from None
    if uri.endswith(".safetensors"):
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(data)
            return tensors
        except safetensors.SafetensorError as error:
            raise ValueError(f"model.weights = {uri!r} is no safetensors file: {error}") from None
    return _state_dict(_torch_load(data, uri), uri)


def _torch_load(data: bytes, uri: str) -> Any:
    try:
        if zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                size = sum(member.file_size for member in archive.infolist())
            check_unpacked(size, len(data), f"model.weights = {uri!r}")
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except TooLargeError:
        raise
    except pickle.UnpicklingError:
        raise ValueError(
            f"model.weights = {uri!r} holds Python objects beside tensors, which would have to be "
            "executed; save its state_dict alone, best as safetensors"
        ) from None
    except Exception as error:  # torch raises all kinds on bytes that it did not write
        raise ValueError(f"model.weights = {uri!r} is no file of torch.save: {error}") from None


def _state_dict(content: Any, uri: str) -> dict[str, Tensor]:
    for key in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(
            f"model.weights = {uri!r} holds a {type(content).__name__}, not tensors by name; save "
            "a network's state_dict"
        )
    odd = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if odd:
        raise ValueError(
            f"model.weights = {uri!r} holds other things than tensors: {_some(odd)}; save a "
            "network's state_dict alone"
        )
    return {str(k): v.detach() for k, v in content.items()}


def _backbone_part(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without prefixes and without a classifier, unless the backbone itself has such names."""
    while not given.keys() & own.keys():
        prefix = next((p for p in _PREFIXES if any(k.startswith(p) for k in given)), None)
        if prefix is None:
            break
        given = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
    return {k: v for k, v in given.items() if k in own or k.split(".")[0] not in _CLASSIFIERS}


def _summed_to_grey(value: Tensor, own: Tensor | None) -> Tensor:
    if own is None or own.ndim != 4 or value.ndim != 4 or own.shape[1] != 1 or value.shape[1] != 3:
        return value
    return value.sum(dim=1, keepdim=True)


def _check_fits(own: Mapping[str, Tensor], given: Mapping[str, Tensor], uri: str) -> None:
    may_miss = [k for k in own if k.endswith("num_batches_tracked") or k.startswith("project.")]
    missing = [k for k in own if k not in given and k not in may_miss]
    unexpected = sorted(k for k in given if k not in own)
    shapes = {
        k: f"{k} ({_shape(given[k])} there, {_shape(v)} here)"
        for k, v in own.items()
        if k in given and given[k].shape != v.shape
    }
    problems = [
        f"{what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", list(shapes.values())),
        )
        if names
    ]
    if problems:
        raise ValueError(
            f"model.weights = {uri!r} does not fit this backbone; {'; '.join(problems)}. "
            f"{_remedy(own, given, unexpected, list(shapes))}"
        )


def _remedy(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], unexpected: list[str], shapes: list[str]
) -> str:
    """What to do about keys that do not fit, where there are some."""
    if {*unexpected, *shapes} <= {"project.weight", "project.bias"} and "project.weight" in given:
        return f"Set model.feature_dim = {given['project.weight'].shape[0]}, as they were trained"
    if shapes == ["conv1.weight"] and not unexpected:
        size, own_size = given["conv1.weight"].shape[-1], own["conv1.weight"].shape[-1]
        if size != own_size:
            stem = "imagenet" if size == 7 else "small"
            return f'Its stem is {size}x{size}: set model.stem = "{stem}"'
        channels = given["conv1.weight"].shape[1]
        return f"It was trained on images of {channels} channels; import the data with as many"
    return "Set model.backbone to the network that it was trained with"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
