"""Pictures of suggestions: what is drawn, and where."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from labelmesh.cluster.suggest import Suggestions
from labelmesh.cluster.suggest_sheet import _shown_rows, image_sheet, map_sheet
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image


def suggestions(count: int, keys: bool = True) -> Suggestions:
    ids = np.arange(count) * 2
    return Suggestions(
        ids,
        np.linspace(1, 0, count),
        np.where(ids % 6 == 0, -1, ids % 3),
        np.linspace(0.3, 0.9, count),
        np.array([f"train/a-long-folder/{i:06}.png" for i in ids]) if keys else None,
        np.array(["cat", "dog", "a class with a very long name"]),
    )


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def dark_share(picture: NDArray[np.uint8]) -> float:
    return float((picture < 128).all(axis=2).mean())


def image(value: int, channels: int = 1) -> NDArray[np.uint8]:
    return np.full((channels, 8, 8), value, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_drawn(channels: int) -> None:
    found = suggestions(6)
    black = image_sheet(found, {int(i): image(0, channels) for i in found.node_ids}, "six")
    white = image_sheet(found, {int(i): image(255, channels) for i in found.node_ids}, "six")
    assert pixels(black).shape == pixels(white).shape
    # Six cells of 1.1 by 1.1 inch.
    inches = np.prod(pixels(black).shape[:2]) / 144**2
    assert dark_share(pixels(black)) - dark_share(pixels(white)) == pytest.approx(
        6 * 1.1**2 / inches, rel=0.08
    )


def drawn_figure(monkeypatch: pytest.MonkeyPatch, count: int, keys: bool) -> Figure:
    figures: list[Figure] = []

    def keep(figure: Figure) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr("labelmesh.cluster.suggest_sheet.as_png", keep)
    found = suggestions(count, keys)
    image_sheet(found, {int(i): image(9) for i in found.node_ids[1:]}, "a title")
    return figures[0]


def test_sheet_grows_with_the_number_of_samples_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("labelmesh.cluster.suggest_sheet.MAX_IMAGES", 12)
    figures = [drawn_figure(monkeypatch, count, True) for count in (1, 6, 12, 30)]
    heights = [figure.get_size_inches()[1] for figure in figures]
    assert heights[0] < heights[1] < heights[2] == heights[3]
    assert [len(figure.axes) for figure in figures] == [1, 6, 12, 12]
    assert "the first 12 of 30" in figures[3].texts[1].get_text()


@pytest.mark.parametrize("keys", [True, False])
@pytest.mark.parametrize("count", [1, 7, 24])
def test_no_text_runs_into_another(monkeypatch: pytest.MonkeyPatch, count: int, keys: bool) -> None:
    figure = drawn_figure(monkeypatch, count, keys)
    figure.draw_without_rendering()
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    assert len(texts) == 2 + 3 * count
    boxes = np.array([text.get_window_extent().extents for text in texts])
    left, bottom, right, top = boxes.T
    inside = figure.bbox.extents
    assert left.min() >= inside[0]
    assert right.max() <= inside[2]
    assert bottom.min() >= inside[1]
    apart = (
        (left[:, None] >= right) | (right[:, None] <= left)
        | (bottom[:, None] >= top) | (top[:, None] <= bottom)
    )  # fmt: skip
    assert bool((apart | np.eye(len(texts), dtype=bool)).all())


def test_captions_say_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn_figure(monkeypatch, 4, True)
    captions = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert captions[0] == ["…folder/000000.png", "nothing known", "1"]
    assert captions[1] == ["…folder/000002.png", "…ry long name  50 %", "2"]
    assert captions[2][1] == "dog  70 %"


def rings(figure: Figure) -> tuple[Axes, list[str]]:
    axes = figure.axes[0]
    return axes, [text.get_text() for text in axes.texts]


def test_map_numbers_the_suggestions(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(
        "labelmesh.cluster.suggest_sheet.as_png", lambda figure: figures.append(figure) or b""
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)) * [9, 5]
    found = suggestions(6)
    # The first two suggestions lie at one place.
    x[found.node_ids[1]] = x[found.node_ids[0]]
    labels = np.where(np.arange(40) % 13 == 1, 1, -1)
    map_sheet(found, x, labels, "forty")
    _, numbers = rings(figures[0])
    assert "1" in numbers
    assert "2" not in numbers
    handles = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert handles == ["dog", "suggested"]


def test_map_of_many_rows_shows_what_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelmesh.cluster.suggest_sheet._MAX_POINTS", 15)
    labels = np.full(500, -1)
    labels[[7, 450, 451]] = 0
    suggested = np.arange(100, 110)
    shown = _shown_rows(suggested, labels, seed=0)
    assert len(shown) == 15
    assert set(suggested.tolist()) | {7, 450, 451} < set(shown.tolist())
    found = Suggestions(suggested, np.ones(10), np.zeros(10, np.int64), np.ones(10))
    x = np.random.default_rng(1).normal(size=(500, 1))
    # Features of width 1 have a map, too.
    assert pixels(map_sheet(found, x, labels, "many")).shape[2] == 3


def test_names_that_strangers_chose_are_no_formulas() -> None:
    names = np.array(["$\\frac{", "$x$", "<script>"])
    found = replace(suggestions(3), keys=names, classes=names)
    sheet = image_sheet(found, {}, names[0])
    drawn = map_sheet(
        found, np.random.default_rng(0).random((6, 3)), np.arange(6) % 4 - 1, names[0]
    )
    assert min(pixels(sheet).size, pixels(drawn).size) > 0
