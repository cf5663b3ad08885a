"""The report: what it says, what it leaves out, and that it needs no other file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelmesh.trainers import plots
from labelmesh.trainers.report import (
    RunFiles,
    image_cards,
    label_rows,
    read_run,
    render,
    scores,
    tiles,
    write_report,
)
from labelmesh.trainers.report_figures import in_the_plane, sections
from labelmesh.trainers.run_dir import RunDir
from PIL import Image

ALL_PLOTS = {
    "accuracy",
    "confusion",
    "density",
    "features",
    "loss",
    "path_length",
    "pseudo_labels",
    "round_seconds",
}
CONFIG = """name = "dag-digits"
seed = 0

[data]
uri = "data/digits"

[model]
backbone = "cnn_small"

[method]
name = "dag"
hops = 2
"""


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_run(folder: Path, *, num_rounds: int = 6, num_points: int = 60) -> Path:
    """A run's files, with invented numbers."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(CONFIG)
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.11.7", "gpus": [], "git": None, "versions": {"torch": "2.13.0"}})
    )
    train = [
        {
            "kind": "train",
            "epoch": step // 40,
            "step": step + 1,
            "loss": 2.3 * 0.985**step + 0.05 * rng.random(),
            "parts": {"cross_entropy": 2.0 * 0.985**step, "spread": 0.3 * 0.985**step},
            "samples_per_s": 1200.0,
        }
        for step in range(0, 40 * num_rounds, 10)
    ]
    accuracies = 0.97 - 0.4 * 0.55 ** np.arange(num_rounds)
    evals = [
        {"kind": "eval", "epoch": e + 1, "split": "val", "network": "ema", "accuracy": float(a)}
        for e, a in enumerate(accuracies)
    ]
    write_lines(folder / "metrics.jsonl", train + evals)
    write_lines(
        folder / "baseline_metrics.jsonl",
        [{"kind": "train", "step": s + 1, "loss": 2.3 * 0.96**s} for s in range(0, 240, 10)],
    )
    write_lines(
        folder / "rounds.jsonl",
        [
            {
                "kind": "round",
                "round": r,
                "epoch": r,
                "searched": 1437,
                "coverage": 1 - 0.3 * 0.5**r,
                "pseudo_accuracy": 0.96 - 0.2 * 0.6**r,
                "seconds_extract": 0.5,
                "seconds_search": 0.25,
                "seconds_solve": 0.2,
                "seconds_publish": 0.05,
            }
            for r in range(num_rounds)
        ],
    )
    (folder / "result.json").write_text(
        json.dumps(
            {
                "test/accuracy": 0.9639,
                "baseline/test/accuracy": 0.8139,
                "nodes/accuracy": 0.955,
                "num_labeled": 40,
                "num_nodes": 1437,
            }
        )
    )
    source = np.array(["given", "graph", "network"])[rng.choice(3, 200, p=[0.1, 0.8, 0.1])]
    labels = pa.table(
        {
            "key": [f"digit-{i:04d}" for i in range(200)],
            "label": rng.integers(0, 10, 200),
            "confidence": np.where(source == "given", 1.0, 0.9),
            "source": source,
            "round": np.where(source == "graph", 5, -1),
        }
    )
    pq.write_table(labels, folder / "labels.parquet")
    write_arrays(folder, num_points, rng)
    return folder


def write_arrays(folder: Path, num_points: int, rng: np.random.Generator) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target[:num_points].astype(np.int64)
    counts = np.diag(rng.integers(30, 38, 10))
    counts[8, 1], counts[3, 9], counts[9, 3] = 5, 2, 1
    shown = slice(1000, 1024)
    given = digits.target[shown].astype(np.int64)
    found = given.copy()
    found[[3, 11]] = (found[[3, 11]] + 1) % 10
    np.savez(
        folder / "report_data.npz",
        density=rng.beta(9, 2, 1437).astype(np.float32),
        path_length=rng.poisson(3.0, 1437),
        confusion=counts,
        class_names=np.array([str(c) for c in range(10)]),
        features2d_source=digits.data[:num_points].astype(np.float32),
        features_label=labels,
        features_kind=(np.arange(num_points) % 15 == 0).astype(np.int64),
        sample_images=(digits.images[shown, None] * 255 / 16).round().astype(np.uint8),
        sample_label=found,
        sample_confidence=rng.uniform(0.5, 1.0, 24).astype(np.float32),
        sample_truth=given,
        sample_source=np.array(["graph"] * 24),
    )


class Page(HTMLParser):
    """Tags and text of a page; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "full"))


@pytest.fixture(scope="module")
def page(written: Path) -> str:
    return written.read_text()


def test_page_needs_no_other_file(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert not any(tag in {"script", "link", "iframe"} for tag, _ in parsed.tags)
    for _, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    assert not re.search(r"url\((?!#)", page)


def test_ids_are_unique_over_all_figures_and_references_resolve(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'xlink:href="#([^"]+)"|url\(#([^)]+)\)', page)) <= {
        pair for i in ids for pair in ((i, ""), ("", i))
    }


def test_every_plot_is_saved_as_png_and_shown_with_a_description(written: Path, page: str) -> None:
    names = sorted(path.stem for path in (written.parent / "plots").iterdir())
    assert set(names) == ALL_PLOTS
    for name in names:
        with Image.open(written.parent / "plots" / f"{name}.png") as image:
            assert min(image.size) > 400
    described = [a["aria-label"] for tag, a in Page(page).tags if tag == "svg"]
    assert len(described) == len(names)
    assert all(described)


@pytest.mark.parametrize(
    "sentence",
    [
        "96.39 %",
        "+15.00 points against the baseline",
        "In the last round 99.1 % of the unlabeled nodes have one, and 94.4 % of these are right.",
        "6.0 s in all rounds; extract takes 50.0 % of it.",
        "Most often 8 is taken for 1: 5 times.",
        "Wrong ones are framed: 2 of these 24.",
        "hops = 2",
        "versions torch",
    ],
)
def test_page_says(page: str, sentence: str) -> None:
    assert sentence in page


def test_figures_are_repeatable() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 8)).astype(np.float32)
    points, how = in_the_plane(features, seed=0)
    assert how == "t-SNE"
    np.testing.assert_array_equal(points, in_the_plane(features, seed=0)[0])
    figures = [plots.histogram("Density", points[:, 0], x="x") for _ in range(2)]
    assert len({plots.as_svg(f, name="a", description="b") for f in figures}) == 1
    assert len({plots.as_png(f) for f in figures}) == 1


def test_few_points_are_shown_by_their_principal_components() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 5)) * [9, 4, 1, 1, 1]
    points, how = in_the_plane(features.astype(np.float32), seed=0)
    assert how == "principal components"
    centered = features - features.mean(0)
    variance = np.linalg.eigvalsh(centered.T @ centered)[::-1]
    np.testing.assert_allclose((points**2).sum(0), variance[:2], rtol=1e-4)


def test_a_run_that_has_only_begun_gives_a_page_without_figures(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('name = "young"\n')
    page = write_report(tmp_path).read_text()
    assert re.findall("<h[12]>(.*)</h[12]>", page) == ["young", "How to repeat it"]
    assert "<svg" not in page
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("rounds.jsonl", {"pseudo_labels", "round_seconds"}),
        ("metrics.jsonl", {"loss", "accuracy"}),
        ("report_data.npz", {"density", "path_length", "confusion", "features"}),
        ("baseline_metrics.jsonl", set()),
        ("result.json", set()),
    ],
)
def test_a_missing_file_leaves_its_figures_out(
    tmp_path: Path, missing: str, gone: set[str]
) -> None:
    run = make_run(tmp_path / "run", num_points=12)
    (run / missing).unlink()
    files = read_run(RunDir(str(run)))
    made = sections(
        metrics=files.metrics,
        baseline_metrics=files.baseline_metrics,
        rounds=files.rounds,
        result=files.result,
        arrays=files.arrays,
        seed=0,
    )
    assert {plot.name for section in made for plot in section.plots} == ALL_PLOTS - gone


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no run: config.toml is missing"):
        write_report(tmp_path)


def test_names_from_a_data_set_are_escaped() -> None:
    files = RunFiles(
        config_text="x = '<b>'",
        config={"name": "<script>alert(1)</script>"},
        arrays={
            "confusion": np.array([[3, 1], [0, 4]]),
            "class_names": np.array(["<img src=x>", 'a"b&c']),
        },
    )
    page = render(files).html
    assert "<script>" not in page
    assert "<img src=x>" not in page
    assert Page(page).open == []


def test_methods_are_ranked_and_compared_with_the_baseline() -> None:
    table = scores(
        {"test/accuracy": 0.9, "baseline/test/accuracy": 0.8, "fixmatch/test/accuracy": 0.95}, "dag"
    )
    assert [(row["name"], row["accuracy"], row["gain"]) for row in table] == [
        ("fixmatch", "95.00 %", "+15.00 points"),
        ("dag", "90.00 %", "+10.00 points"),
        ("supervised baseline", "80.00 %", "–"),
    ]
    assert [row["is_headline"] for row in table] == [False, True, False]


def test_a_method_below_the_baseline_is_shown_as_such() -> None:
    files = RunFiles("", {}, result={"test/accuracy": 0.7, "baseline/test/accuracy": 0.8})
    assert tiles(files)[0]["note"] == "−10.00 points against the baseline"


def test_nan_scores_are_left_out() -> None:
    files = RunFiles("", {}, result={"test/accuracy": float("nan"), "nodes/accuracy": 0.5})
    assert [tile["name"] for tile in tiles(files)] == ["labels found"]
    assert scores(files.result, "dag") == []


def test_label_rows_count_by_source() -> None:
    table = pa.table(
        {
            "label": [0, 1, 1, 0],
            "confidence": [1.0, 0.5, 0.7, 0.9],
            "source": ["given", "graph", "graph", "network"],
        }
    )
    assert [(r["source"], r["nodes"], r["share"], r["confidence"]) for r in label_rows(table)] == [
        ("given", "1", "25.0 %", "100.0 %"),
        ("found by the graph", "2", "50.0 %", "60.0 %"),
        ("found by the network", "1", "25.0 %", "90.0 %"),
    ]


def test_images_are_wrong_only_where_the_truth_is_known() -> None:
    cards = image_cards(
        {
            "sample_images": np.zeros((4, 3, 4, 4), np.uint8),
            "sample_label": np.array([0, 1, 1, -1]),
            "sample_truth": np.array([0, 0, -1, -1]),
            "class_names": np.array(["cat", "dog"]),
        }
    )
    assert [card["is_wrong"] for card in cards] == [False, True, False, False]
    assert [card["is_right"] for card in cards] == [True, False, False, False]
    assert cards[1]["truth"] == "cat"
    assert cards[3]["label"] == "no label"


def test_phases_that_take_turns_have_lines_of_their_own() -> None:
    from labelmesh.trainers.report_figures import loss_plot

    def record(step: int, phase: str, loss: float, **parts: float) -> dict[str, Any]:
        return {"kind": "train", "step": step, "phase": phase, "loss": loss, "parts": parts}

    metrics = [
        record(1, "warmup", 2.0, supervised=2.0),
        record(2, "cluster", 3.0, clustering=3.0),
        record(3, "label", 1.0, labeled=0.75, unlabeled=0.25),
        record(4, "cluster", 2.5, clustering=2.5),
        record(5, "label", 0.5, labeled=0.25, unlabeled=0.25),
    ]
    plot = loss_plot(metrics, [])
    assert plot is not None
    axes = plot.figure.axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    # a part that is all of the loss is not drawn again
    assert set(lines) == {
        "total, warmup",
        "total, cluster",
        "total, label",
        "labeled",
        "unlabeled",
    }
    nan = np.nan
    np.testing.assert_equal(lines["total, cluster"], [nan, 3.0, nan, 2.5, nan])
    np.testing.assert_equal(lines["total, label"], [nan, nan, 1.0, nan, 0.5])
    assert "total, label from 1.000 to 0.500" in plot.caption


EVIL = '--></text></svg><script>alert(1)</script><img src=x onerror="alert(2)">'


def test_names_that_strangers_chose_stay_text(tmp_path: Path) -> None:
    files = read_run(RunDir(str(make_run(tmp_path / "run", num_rounds=1, num_points=12))))
    names = [EVIL, "$\\frac{", "a]]>b", "'\"&lt;", *(str(c) for c in range(4, 10))]
    arrays = {n: a for n, a in files.arrays.items() if n == "confusion" or "sample" in n}
    evil = replace(
        files,
        arrays={**arrays, "class_names": np.array(names)},
        rounds=(),
        baseline_metrics=(),
        config={**files.config, "name": EVIL, "data": {"uri": EVIL}},
        config_text=f"name = {EVIL!r}",
        environment={"git": EVIL, EVIL: 1},
        metrics=[{**m, "parts": {EVIL: 1.0}} if "parts" in m else m for m in files.metrics],
    )
    html = render(evil).html
    page = Page(html)
    assert page.open == []
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    assert html.count("&lt;script&gt;alert(1)") > 5
    assert "$\\frac{" in html
