"""Weights from files: what is taken, what is left, and what is said where they do not fit."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.datasets.files import write_atomic
from labelmesh.trainers.backbones.build import build_backbone
from labelmesh.trainers.backbones.weights import load_weights, read_tensors
from labelmesh.trainers.config import RunSpec, parse_spec, with_absolute_uris
from labelmesh.trainers.layers.classifier import LinearClassifier
from labelmesh.trainers.networks import build_network
from torch import Tensor, nn

State = dict[str, Tensor]
SHAPE = (3, 8, 8)


def backbone(
    seed: int, *, name: str = "wrn_28_2", shape: tuple[int, int, int] = SHAPE, dim: int = 128
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_backbone(name, shape, dim)


def classifier_state(seed: int = 1) -> State:
    """A backbone's tensors and a classifier's, as networks are published."""
    return {
        **backbone(seed).state_dict(),
        "fc.weight": torch.ones(10, 128),
        "fc.bias": torch.ones(10),
    }


def assert_same(net: nn.Module, expected: State) -> None:
    for key, value in net.state_dict().items():
        assert torch.equal(value, expected[key]), key


def save(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": state, "epoch": 7},
        lambda state: {k: v for k, v in state.items() if "num_batches_tracked" not in k},
    ],
    ids=["plain", "parallel", "compiled", "nested", "old"],
)
def test_state_dicts_are_taken_in_every_wrapping(
    wrapped: Callable[[State], object], tmp_path: Path
) -> None:
    state = classifier_state()
    net = backbone(0)
    load_weights(net, save(tmp_path / "w.pth", wrapped(state)))
    assert_same(net, state)


def test_files_of_before_the_zip_format_are_read(tmp_path: Path) -> None:
    torch.save(classifier_state(), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    net = backbone(0)
    load_weights(net, str(tmp_path / "w.pth"))
    assert_same(net, classifier_state())


def test_half_precision_is_widened(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in classifier_state().items()}
    net = backbone(0)
    load_weights(net, save(tmp_path / "w.pt", state))
    assert_same(net, {k: v.float() if v.is_floating_point() else v for k, v in state.items()})


def test_a_runs_network_is_taken_from_its_directory_or_file(tmp_path: Path) -> None:
    run = LinearClassifier(backbone(1), 128, 10)
    state = {**run.state_dict(), "base_features": torch.ones(2, 3), "base_labels": torch.ones(2)}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    for uri in (tmp_path, tmp_path / "model.safetensors"):
        net = backbone(0)
        load_weights(net, str(uri))
        assert_same(net, run.backbone.state_dict())


def test_any_file_system_will_do() -> None:
    buffer = io.BytesIO()
    torch.save(classifier_state(), buffer)
    uri = "memory://weights-test/w.pth"
    with fsspec.open(uri, "wb") as file:
        file.write(buffer.getvalue())
    net = backbone(0)
    load_weights(net, uri)
    assert_same(net, classifier_state())


def test_projection_stays_as_drawn_where_the_file_has_none(tmp_path: Path) -> None:
    net, drawn = backbone(0, dim=16), backbone(0, dim=16)
    load_weights(net, save(tmp_path / "w.pth", classifier_state()))
    assert_same(
        net,
        {
            **classifier_state(),
            **{f"project.{k}": v for k, v in drawn.project.state_dict().items()},
        },
    )


def test_colour_stem_answers_a_grey_image_as_three_equal_channels(tmp_path: Path) -> None:
    colour, grey = backbone(1), backbone(0, shape=(1, 8, 8))
    load_weights(grey, save(tmp_path / "w.pth", colour.state_dict()))
    image = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer, expected = grey.eval()(image), colour.eval()(image.expand(-1, 3, -1, -1))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def without(state: State, *keys: str) -> State:
    return {k: v for k, v in state.items() if k not in keys}


def small_resnet(side: int) -> State:
    """Names and shapes alone of a resnet18 whose stem is of the given size."""
    with torch.device("meta"):
        net = build_backbone(
            "resnet18", (3, 32, 32), 512, stem="imagenet" if side == 7 else "small"
        )
    return {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            lambda s: without(s, "bn.weight", "conv1.weight"),
            r"missing: conv1.weight, bn.weight\. Set model.backbone",
        ),
        (lambda s: {**s, "extra.weight": torch.ones(1)}, "unexpected: extra.weight"),
        (lambda s: {**s, "bn.weight": torch.ones(3)}, r"bn.weight \(3 there, 128 here\)"),
        (lambda s: {**s, "conv1.weight": torch.ones(16, 4, 3, 3)}, "on images of 4 channels"),
        (
            lambda s: {**s, "project.weight": torch.ones(9, 128), "project.bias": torch.ones(9)},
            "Set model.feature_dim = 9",
        ),
        (lambda s: {**s, "bn.bias": torch.full((128,), torch.nan)}, "NaN or infinity in bn.bias"),
        (lambda s: {**s, "epoch": 3}, "other things than tensors: epoch"),
        (lambda s: {"a": torch.ones(1)}, r"missing: conv1.weight, .* and \d+ more; unexpected: a"),
        (lambda s: list(s.values()), "holds a list"),
    ],
)
def test_what_does_not_fit_is_named(
    changed: Callable[[State], object], words: str, tmp_path: Path
) -> None:
    net = backbone(0)
    uri = save(tmp_path / "w.pth", changed(backbone(1).state_dict()))
    with pytest.raises(ValueError, match=words):
        load_weights(net, uri)
    assert_same(net, backbone(0).state_dict())


@pytest.mark.parametrize(
    ("there", "here", "stem"), [(7, "small", "imagenet"), (3, "imagenet", "small")]
)
def test_other_stem_names_the_key(there: int, here: str, stem: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        net = build_backbone("resnet18", (3, 32, 32), 512, stem=here)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f'set model.stem = "{stem}"'):
        load_weights(net, save(tmp_path / "w.pth", small_resnet(there)))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('executed')",)


def test_files_that_would_execute_code_are_refused(tmp_path: Path) -> None:
    uri = save(tmp_path / "w.pth", {**backbone(1).state_dict(), "a": Evil()})
    with pytest.raises(ValueError, match="would have to be executed"):
        load_weights(backbone(0), uri)


def test_file_that_unpacks_to_far_more_than_it_weighs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABELMESH_MAX_UNPACKED_BYTES", "100000")
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data/0", bytes(10**6))
    with pytest.raises(ValueError, match=r"w.pth' has 1,000,000 bytes unpacked, more than the"):
        load_weights(backbone(0), str(tmp_path / "w.pth"))


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 200), junk=st.binary(min_size=1, max_size=12))
def test_damaged_safetensors_never_give_more_than_an_error(place: int, junk: bytes) -> None:
    content = bytearray(safetensors.torch.save({"a": torch.zeros(2, 3), "b": torch.ones(4)}))
    content[place : place + len(junk)] = junk
    uri = f"memory://damaged-{place}.safetensors"
    write_atomic(uri, bytes(content))
    try:
        tensors = read_tensors(uri)
    except ValueError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)


def test_header_of_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes((2**33).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_weights(backbone(0), str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"nonsense", b"", b"PK\x03\x04 no archive"])
def test_files_of_other_kinds_are_refused(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}' (is no|holds)"):
        read_tensors(str(tmp_path / name))


@pytest.mark.parametrize("name", ["none.pth", "none"])
def test_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*none"):
        read_tensors(str(tmp_path / name))


def spec(uri: str | None) -> RunSpec:
    return parse_spec(
        {
            "name": "t",
            "data": {"uri": "x"},
            "model": {"backbone": "wrn_28_2"} | ({"weights": uri} if uri else {}),
            "method": {"name": "supervised"},
            "train": {"epochs": 1},
        }
    )


def test_a_runs_network_starts_from_its_weights_and_draws_the_rest(tmp_path: Path) -> None:
    run, plain = spec(save(tmp_path / "w.pth", classifier_state())), spec(None)
    first = build_network(run, run.method, SHAPE, 10)
    drawn = build_network(plain, plain.method, SHAPE, 10)
    assert_same(first.backbone, classifier_state())
    assert_same(first.classifier, drawn.classifier.state_dict())
    assert not torch.equal(drawn.backbone.conv1.weight, first.backbone.conv1.weight)


def test_weights_path_does_not_depend_on_the_working_directory() -> None:
    assert with_absolute_uris(spec("w.pth")).model.weights == str(Path("w.pth").absolute())
    assert with_absolute_uris(spec("s3://b/w.pth")).model.weights == "s3://b/w.pth"
