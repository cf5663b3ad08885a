"""A run's report: one self-contained HTML page and its plots as PNG, from the run's files.

Only `config.toml` must be there. Whatever else is missing (a method without a graph has no rounds,
embeddings have no images) leaves its section out.
"""

from __future__ import annotations

import io
import math
import statistics
import tomllib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from PIL import Image

from .. import __version__
from ..datasets.arrays import read_arrays
from .report_figures import Plot, Section, class_names, sections
from .run_dir import RunDir

Record = dict[str, Any]

_BASELINE = "supervised baseline"


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run say; empty where there is no such file."""

    config_text: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Record] = ()
    baseline_metrics: Sequence[Record] = ()
    rounds: Sequence[Record] = ()
    result: Mapping[str, Any] = field(default_factory=dict)
    labels: pa.Table | None = None
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """The page, and the plots by file name."""

    html: str
    plots: Mapping[str, bytes]


def write_report(run_dir: Path) -> Path:
    """Write `report.html` and `plots/*.png` into a run's folder; returns the page's path.

    Raises:
        ValueError: The folder holds no run.
    """
    return Path(publish_report(RunDir(str(run_dir))))


def publish_report(run: RunDir) -> str:
    """Like `write_report`, for a run at any URI; returns where the page lies."""
    rendered = render(read_run(run))
    for name, png in rendered.plots.items():
        run.write_bytes(f"plots/{name}.png", png)
    run.write_text("report.html", rendered.html)
    return run.child("report.html")


def read_run(run: RunDir) -> RunFiles:
    """Read whatever a run has written so far.

    Raises:
        ValueError: There is no run.
    """
    if not run.exists("config.toml"):
        raise ValueError(f"{run.uri} holds no run: config.toml is missing")
    config_text = run.read_text("config.toml")
    labels = None
    if run.exists("labels.parquet"):
        labels = run.read_table("labels.parquet")
    arrays: dict[str, np.ndarray] = {}
    if run.exists("report_data.npz"):
        found = read_arrays(run.read_bytes("report_data.npz"), run.child("report_data.npz"))
        arrays = found if isinstance(found, dict) else {}
    return RunFiles(
        config_text=config_text,
        config=tomllib.loads(config_text),
        environment=run.read_json("environment.json") if run.exists("environment.json") else {},
        metrics=run.read_lines("metrics.jsonl"),
        baseline_metrics=run.read_lines("baseline_metrics.jsonl"),
        rounds=run.read_lines("rounds.jsonl"),
        result=run.read_json("result.json") if run.exists("result.json") else {},
        labels=labels,
        arrays=arrays,
    )


def render(files: RunFiles) -> Rendered:
    """The page as text, and its plots; a function of the files alone."""
    made = sections(
        metrics=files.metrics,
        baseline_metrics=files.baseline_metrics,
        rounds=files.rounds,
        result=files.result,
        arrays=files.arrays,
        seed=int(files.config.get("seed", 0)),
    )
    images = image_cards(files.arrays)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html").render(
        name=files.config.get("name", "run"),
        subtitle=subtitle(files),
        tiles=tiles(files),
        scores=scores(files.result, _method(files)),
        sections=[_in_page(section) for section in made],
        images=images,
        images_text=images_text(images),
        label_rows=label_rows(files.labels),
        config=files.config_text.strip(),
        environment=_flat(files.environment),
        version=__version__,
    )
    plots = {plot.name: plot.png() for section in made for plot in section.plots}
    return Rendered(html, plots)


def subtitle(files: RunFiles) -> str:
    """One line: method, network, data and seed."""
    config = files.config
    parts = [f"{_method(files)} on {config.get('data', {}).get('uri', 'unknown data')}"]
    backbone = config.get("model", {}).get("backbone")
    parts += [f"network {backbone}"] if backbone else []
    parts += [f"seed {config['seed']}"] if "seed" in config else []
    return " · ".join(parts)


def tiles(files: RunFiles) -> list[dict[str, str]]:
    """The key figures; each only where it is known."""
    result, out = files.result, []

    def add(name: str, value: str | None, note: str = "") -> None:
        if value is not None:
            out.append({"name": name, "value": value, "note": note})

    test, baseline = _number(result, "test/accuracy"), _number(result, "baseline/test/accuracy")
    gain = None if test is None or baseline is None else points(test - baseline)
    add("test accuracy", percent(test), f"{gain} against the baseline" if gain else "")
    add("labels found", percent(_number(result, "nodes/accuracy")), "right, of all unlabeled nodes")
    last = files.rounds[-1] if files.rounds else {}
    right = percent(_number(last, "pseudo_accuracy"))
    add("graph coverage", percent(_number(last, "coverage")), f"{right} right" if right else "")
    if "num_labeled" in result and "num_nodes" in result:
        add("labels given", f"{result['num_labeled']:,.0f}", f"of {result['num_nodes']:,.0f} nodes")
    speeds = [r["samples_per_s"] for r in files.metrics if r.get("samples_per_s")]
    if speeds:
        add("speed", f"{statistics.median(speeds):,.0f}", "samples per second")
    return out


def scores(result: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    """The methods with a test accuracy, best first: `test/accuracy` is the run's own method,
    `<name>/test/accuracy` any other that was trained on the same labels."""
    ending = "/test/accuracy"
    found = {
        (_BASELINE if key == "baseline" + ending else key.removesuffix(ending)): value
        for key, value in result.items()
        if key.endswith(ending)
    }
    baseline = _number(result, "baseline" + ending)
    own = _number(result, "test/accuracy")
    known = {name: float(v) for name, v in found.items() if math.isfinite(v)}
    if own is not None:
        known[method] = own

    def gain(name: str, value: float) -> str:
        return "–" if baseline is None or name == _BASELINE else points(value - baseline)

    return [
        {
            "name": name,
            "accuracy": percent(value),
            "gain": gain(name, value),
            "width": f"{100 * value:.1f}",
            "is_headline": name == method,
        }
        for name, value in sorted(known.items(), key=lambda item: -item[1])
    ]


def image_cards(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Sampled unlabeled images with their label; wrong where the truth is known to differ."""
    if "sample_images" not in arrays or "sample_label" not in arrays:
        return []
    images, labels = arrays["sample_images"], arrays["sample_label"]
    names = class_names(arrays, int(labels.max(initial=-1)) + 1)
    confidence = arrays.get("sample_confidence", np.full(len(labels), np.nan))
    truth = arrays.get("sample_truth", np.full(len(labels), -1))
    cards = []
    for image, label, share, true in zip(images, labels, confidence, truth):
        is_wrong = bool(true >= 0 and true != label)
        name = names[label] if label >= 0 else "no label"
        cards.append(
            {
                "data": _png(image),
                "label": name,
                "confidence": "" if math.isnan(share) else f"{100 * share:.0f} %",
                "truth": names[true] if is_wrong and true < len(names) else "",
                "is_wrong": is_wrong,
                "is_right": bool(true >= 0 and not is_wrong),
                "alt": f"unlabeled image, labeled {name}",
            }
        )
    return cards


def images_text(cards: Sequence[Mapping[str, Any]]) -> str:
    """What stands above the images."""
    judged = [card for card in cards if card["is_wrong"] or card["is_right"]]
    text = "A random sample, with the confidence of each label."
    if judged:
        wrong = sum(card["is_wrong"] for card in judged)
        text += f" Wrong ones are framed: {wrong} of these {len(judged)}."
    return text


def label_rows(labels: pa.Table | None) -> list[dict[str, str]]:
    """Nodes, share and mean confidence by where the label comes from."""
    if labels is None or not labels.num_rows:
        return []
    grouped = labels.group_by("source").aggregate([("label", "count"), ("confidence", "mean")])
    names = {
        "given": "given",
        "graph": "found by the graph",
        "network": "found by the network",
        "none": "none: the sample could not be read",
    }
    rows = sorted(grouped.to_pylist(), key=lambda row: list(names).index(row["source"]))
    total = pc.sum(grouped["label_count"]).as_py()
    return [
        {
            "source": names[row["source"]],
            "nodes": f"{row['label_count']:,}",
            "share": f"{100 * row['label_count'] / total:.1f} %",
            "confidence": f"{100 * row['confidence_mean']:.1f} %",
        }
        for row in rows
    ]


def percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f} %"


def points(difference: float) -> str:
    """A difference of shares, in percentage points, with its sign."""
    return f"{100 * difference:+.2f} points".replace("-", "−")


def _in_page(section: Section) -> dict[str, Any]:
    def figure(plot: Plot) -> dict[str, Any]:
        svg = Markup(plot.svg())
        return {"svg": svg, "caption": plot.caption, "is_wide": plot.is_wide}

    return {
        "title": section.title,
        "text": section.text,
        "plots": [figure(plot) for plot in section.plots],
    }


def _method(files: RunFiles) -> str:
    return str(files.config.get("method", {}).get("name", "method"))


def _number(values: Mapping[str, Any], key: str) -> float | None:
    value = values.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            out += _flat(value, f"{prefix}{key} ")
        elif value not in (None, [], ""):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            out.append((prefix + key, text))
    return out


def _png(image: np.ndarray) -> str:
    """An image `c h w` as base64 PNG. Other than 1 or 3 channels: the first is shown."""
    pixels = image.transpose(1, 2, 0) if image.shape[0] == 3 else image[0]
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, format="png", optimize=True)
    return b64encode(out.getvalue()).decode()
