"""What goes along with a job, and what is refused before it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelmesh.cluster.shipping import Shipment, plan_shipment, ship_files, ship_package
from labelmesh.trainers.config import ConfigError

AWAY = ["--set", "data.uri=s3://b/digits", "--out", "s3://b/runs"]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of one's own in the working directory."""
    import labelmesh

    monkeypatch.chdir(tmp_path)
    shipped = Path(labelmesh.__file__).parent / "trainers" / "configs" / "dag-digits.toml"
    (tmp_path / "mine.toml").write_text(shipped.read_text())
    return tmp_path / "mine.toml"


def test_a_shipped_configuration_and_uris_go_as_they_are() -> None:
    args = ["train", "dag-digits", *AWAY]
    assert plan_shipment(args, is_here=False) == Shipment(tuple(args))


def test_a_configuration_goes_along_and_is_found_by_its_name(config: Path) -> None:
    args = ["train", "./mine.toml", "--name", "first", *AWAY]
    sent = plan_shipment(args, is_here=False)
    assert sent.args[:4] == ("train", "mine.toml", "--name", "first")
    assert sent.files == {"mine.toml": config}


def test_a_name_like_the_configuration_stays_a_name(config: Path) -> None:
    args = ["train", "--name", "mine.toml", str(config), *AWAY]
    assert plan_shipment(args, is_here=False).args[:4] == (
        "train",
        "--name",
        "mine.toml",
        "mine.toml",
    )


def test_a_list_of_splits_goes_along(config: Path) -> None:
    split = config.with_name("split.parquet")
    split.write_bytes(b"PAR1")
    text = config.read_text().replace("labels_per_class = 4\n", "")
    list_ = 'split_file = "split.parquet"\nsplit_dataset = "d"\nsplit_num_labels = 4\n'
    config.write_text(text.replace("[data]\n", f"[data]\n{list_}"))
    sent = plan_shipment(["train", "mine.toml", *AWAY], is_here=False)
    assert sent.files == {"mine.toml": config, "split_file-split.parquet": split}
    assert 'data.split_file="split_file-split.parquet"' in sent.args


@pytest.mark.parametrize(
    ("args", "key"),
    [
        (["--out", "s3://b/runs"], "data.uri = 'data/digits'"),
        (["--set", "data.uri=s3://b/digits"], "output.uri = 'runs'"),
        (["--set", "data.uri=s3://b/digits", "--out", "runs"], "--out = 'runs'"),
    ],
)
def test_paths_of_this_machine_are_refused_where_the_cluster_is_another(
    args: list[str], key: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_shipment(["train", "dag-digits", *args], is_here=False)
    assert str(refused.value).startswith(key)
    assert "s3://" in str(refused.value)


def test_files_that_other_commands_name_go_along(config: Path, tmp_path: Path) -> None:
    args = ["report", "s3://b/runs/first"]
    assert plan_shipment(args, is_here=False) == Shipment(tuple(args))
    label = ["label", "mine.toml", "--out", "s3://b/labels.parquet"]
    assert plan_shipment(label, is_here=False).files == {"mine.toml": config}
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "mine.toml"
    twin.write_text("")
    with pytest.raises(ConfigError, match="have the same name"):
        plan_shipment([*label, "--labels", "other/mine.toml"], is_here=False)


def test_secrets_in_a_command_are_refused() -> None:
    with pytest.raises(ValueError, match=r"command.* has credentials"):
        plan_shipment(["train", "dag-digits", "--out", "s3://key:secret@b/runs"], is_here=False)


def test_absolute_paths_are_taken_for_a_shared_file_system() -> None:
    args = ["train", "dag-digits", "--set", "data.uri=/mnt/digits", "--out", "/mnt/runs"]
    assert plan_shipment(args, is_here=False).args == tuple(args)


def test_on_this_machine_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sent = plan_shipment(["train", "dag-digits"], is_here=True)
    assert sent.files == {}
    assert f'data.uri="{tmp_path}/data/digits"' in sent.args
    assert f'output.uri="{tmp_path}/runs"' in sent.args


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "got nothing"),
        (["submit", "--", "train"], "got 'submit'"),
        (["rm", "-rf"], "a job is one of .*train.*; got 'rm'"),
        (["train", "dag-digits", "--set", "graph.kk=3"], "did you mean 'graph.k'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(args: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        plan_shipment(args, is_here=True)


def test_the_package_that_is_sent_can_be_imported(tmp_path: Path) -> None:
    sent = ship_package(tmp_path)
    assert sent.name == "labelmesh"
    for name in ("__init__.py", "__main__.py", "cluster/cli.py"):
        assert (sent / name).is_file()
    assert (sent / "trainers" / "configs" / "dag-digits.toml").is_file()
    assert not list(sent.rglob("__pycache__"))
    assert not (sent / "tests").exists()


def test_files_lie_in_the_jobs_folder_under_their_names(config: Path, tmp_path: Path) -> None:
    folder = ship_files({"other.toml": config}, tmp_path / "job")
    assert (folder / "other.toml").read_text() == config.read_text()
