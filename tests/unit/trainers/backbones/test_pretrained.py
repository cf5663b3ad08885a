"""Pretrained backbones against transformers' own forward pass and processors, on tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelmesh.trainers.backbones.build import build_backbone
from labelmesh.trainers.backbones.pretrained import Pretrained, build_pretrained
from torch import Tensor

transformers = pytest.importorskip("transformers")

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIDE = 32


def dinov2() -> Any:
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=8
    )
    return transformers.Dinov2Model(config)


def vit(pooler: bool = True) -> Any:
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIDE,
        patch_size=8,
    )
    return transformers.ViTModel(config, add_pooling_layer=pooler)


def convnext() -> Any:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 24], depths=[1, 1, 1, 1])
    return transformers.ConvNextModel(config)


def resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 24], depths=[1, 1, 1, 1]
    )
    return transformers.ResNetModel(config)


def swin() -> Any:
    config = transformers.SwinConfig(
        image_size=SIDE, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    return transformers.SwinModel(config)


def clip() -> Any:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    text = transformers.CLIPTextConfig(**size, **heads, vocab_size=20)
    vision = transformers.CLIPVisionConfig(**size, **heads, image_size=SIDE, patch_size=8)
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    )


MODELS: dict[str, Callable[[], Any]] = {
    "dinov2": dinov2,
    "vit": vit,
    "convnext": convnext,
    "resnet": resnet,
    "swin": swin,
}


def saved(make: Callable[[], Any], folder: Path, **processor: Any) -> tuple[str, Any]:
    """`model.backbone` of a random model in a folder, and the model."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-1e-3, 1e-3)
    model.save_pretrained(folder)
    told = {"size": {"height": SIDE, "width": SIDE}, "image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, **processor}))
    return f"hf:{folder}", model


def images(shape: tuple[int, ...] = (3, SIDE, SIDE), count: int = 3) -> Tensor:
    """uint8."""
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, *shape), generator=rng, dtype=torch.uint8)


def inputs_of(pixels: Tensor) -> Tensor:
    """As the plain view gives them."""
    made = (pixels.float() / 255 - 0.5) / 0.5
    return made.contiguous(memory_format=torch.channels_last)


def built(name: str, dim: int = 24, *, seed: int = 0, channels: int = 3) -> Pretrained:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = build_backbone(name, (channels, SIDE, SIDE), dim)
    assert isinstance(made, Pretrained)
    return made.eval()


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_features_are_the_model_s_own_pooled_output(kind: str, tmp_path: Path) -> None:
    name, model = saved(MODELS[kind], tmp_path)
    net, pixels = built(name), images()
    mean, std = (torch.tensor(x).view(-1, 1, 1) for x in (MEAN, STD))
    wanted = model(pixel_values=(pixels / 255 - mean) / std).pooler_output.flatten(1)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(net(inputs_of(pixels)), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("processor", "options"),
    [
        ("ViTImageProcessor", {"size": {"height": 24, "width": 40}}),
        ("ViTImageProcessor", {"do_rescale": False}),
        ("ViTImageProcessor", {"do_normalize": False, "rescale_factor": 1 / 127.5}),
        ("BitImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 24}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 16}, "crop_pct": 1.0}),
    ],
)
@torch.no_grad()
def test_pixels_are_prepared_like_the_processor_prepares_them(
    processor: str, options: dict[str, Any], tmp_path: Path
) -> None:
    name, _ = saved(resnet, tmp_path, **options)
    told = json.loads((tmp_path / "preprocessor_config.json").read_text())
    if processor == "BitImageProcessor":
        told["size"], told["do_center_crop"] = told.pop("crop_size"), False  # nothing is cut off
        told["size"] = {"height": told["size"], "width": told["size"]}
    theirs = getattr(transformers, processor)(**{"resample": 3, **told})
    ramp = torch.linspace(0, 255, SIDE).to(torch.uint8)  # smooth: nothing overshoots
    pixels = torch.stack(
        [ramp.expand(SIDE, SIDE), ramp.expand(SIDE, SIDE).T, ramp.flip(0).expand(SIDE, SIDE)]
    )
    wanted = theirs(pixels.permute(1, 2, 0).numpy(), return_tensors="np")["pixel_values"]
    made = built(name).encoder.prepare(inputs_of(pixels[None])).numpy()
    step = np.abs(wanted).max() / 100  # theirs rounds to 8 bits between
    np.testing.assert_allclose(made, wanted, atol=step)


@torch.no_grad()
def test_grey_images_are_three_equal_channels(tmp_path: Path) -> None:
    name, _ = saved(convnext, tmp_path)
    grey = inputs_of(images((1, SIDE, SIDE)))
    torch.testing.assert_close(
        built(name, channels=1)(grey), built(name)(grey.repeat(1, 3, 1, 1)), rtol=1e-5, atol=1e-6
    )


@torch.no_grad()
@pytest.mark.parametrize(("given", "side"), [(30, 32), (19, 16), (3, 8)])
def test_sides_become_multiples_of_the_patch(given: int, side: int, tmp_path: Path) -> None:
    name, model = saved(vit, tmp_path, size={"height": given, "width": given})
    net, pixels = built(name), inputs_of(images((3, 20, 27)))
    made = net.encoder.prepare(pixels)
    assert made.shape == (3, 3, side, side)
    wanted = model(pixel_values=made, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(net(pixels), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_weights_for_its_pooler_a_vit_gives_the_class_token(tmp_path: Path) -> None:
    name, model = saved(lambda: vit(pooler=False), tmp_path)
    net, pixels = built(name), inputs_of(images())
    wanted = model(pixel_values=net.encoder.prepare(pixels)).last_hidden_state[:, 0]
    torch.testing.assert_close(net(pixels), wanted, rtol=1e-4, atol=1e-5)
    assert net.encoder.pool == "class_token"
    assert not any(p.requires_grad for k, p in net.named_parameters() if ".pooler." in k)


def test_the_seed_moves_the_projection_alone(tmp_path: Path) -> None:
    name, _ = saved(lambda: vit(pooler=False), tmp_path)
    first, again, other = (built(name, 10, seed=seed).state_dict() for seed in (0, 0, 1))
    assert first["project.weight"].shape == (10, 24)
    assert all(torch.equal(first[key], again[key]) for key in first if ".pooler." not in key)
    differs = {key for key in first if not torch.equal(first[key], other[key])}
    assert {k for k in differs if ".pooler." not in k} == {"project.weight", "project.bias"}


@pytest.mark.parametrize("kind", MODELS)
def test_every_weight_that_counts_gets_a_gradient(kind: str, tmp_path: Path) -> None:
    name, _ = saved(MODELS[kind], tmp_path)
    net = built(name, 10)
    net(inputs_of(images())).square().sum().backward()
    silent = [k for k, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_a_stored_description_builds_it_without_its_source(kind: str, tmp_path: Path) -> None:
    name, _ = saved(MODELS[kind], tmp_path / "model")
    net, pixels = built(name, 10), inputs_of(images())
    stored = json.loads(json.dumps(net.encoder.description()))
    shutil.rmtree(tmp_path / "model")
    rebuilt = build_pretrained(name, (3, SIDE, SIDE), 10, stored=stored).eval()
    rebuilt.load_state_dict(net.state_dict())
    assert torch.equal(rebuilt(pixels), net(pixels))
    assert json.loads(json.dumps(rebuilt.encoder.description())) == stored


def _without(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _unsafe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _half(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in state.items() if "layer.1." not in key}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def _told(folder: Path, **values: Any) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **values}))


def _kernel(folder: Path) -> None:
    _told(folder, attn_implementation="evil/kernel")


def _no_mean(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"size": 32}')


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (_without("preprocessor_config.json"), "it has no preprocessor_config.json"),
        (_without("config.json"), "it has no config.json"),
        (_unsafe, "it has no model.safetensors"),
        (_half, "has no fitting weights for '.*layers?.1.*' \\(and 15 more\\)"),
        (_no_mean, "must name size, image_mean and image_std"),
        (_kernel, "attn_implementation = 'evil/kernel', code that would be downloaded and run"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(
    spoil: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    name, _ = saved(vit, tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        built(name)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    name, _ = saved(resnet, tmp_path / "resnet")
    with pytest.raises(ValueError, match="takes images of 3 channels, not 4"):
        built(name, channels=4)
    with pytest.raises(ValueError, match="is for images, but inputs have the shape"):
        build_backbone(name, (7,), 24)
    with pytest.raises(ValueError, match="leave it out with"):
        build_backbone(name, (3, SIDE, SIDE), 24, stem="small")
    with pytest.raises(ValueError, match="takes 'input_ids', not images alone"):
        built(saved(clip, tmp_path / "clip")[0])


def test_an_unknown_name_without_a_connection_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError, match="there is no such folder, and no model 'nobody/none'"
    ) as e:
        built("hf:nobody/none")
    assert "\n" not in str(e.value)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers.utils", None)
    with pytest.raises(ValueError, match=r"pip install 'labelmesh\[hf\]'"):
        built("hf:anything")


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, _ = saved(lambda: vit(pooler=False), tmp_path)
    capfd.readouterr()
    built(name)
    assert capfd.readouterr() == ("", "")


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    name, _ = saved(vit, tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: ...\n")
    _told(tmp_path, auto_map={"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"})
    assert built(name)(inputs_of(images())).shape == (3, 24)
    _told(tmp_path, model_type="unheard-of")
    with pytest.raises(ValueError, match="the folder cannot be used"):
        built(name)
    assert not (tmp_path / "ran").exists()
