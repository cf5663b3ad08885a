"""Ray runs whatever code it is sent: it is started with tokens, and no token is written down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from labelmesh.cluster.api import Run, connect
from labelmesh.cluster.jobs import submit
from labelmesh.datasets.writer import DatasetWriter
from labelmesh.trainers.config import ConfigError
from labelmesh.trainers.run_dir import RunDir

_SECRETS = {
    "RAY_AUTH_TOKEN_OF_THE_CLUSTER": "tok-0123456789abcdef",
    "AWS_SECRET_ACCESS_KEY": "aws-0123456789abcdef",
    "MLFLOW_TRACKING_PASSWORD": "mlf-0123456789abcdef",
}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `ray.init` was asked for."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return asked


def test_ray_is_started_with_tokens_and_without_a_dashboard(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.delenv("RAY_AUTH_MODE")
    with connect() as cluster:
        cluster.start()
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert started["address"] is None
    assert started["include_dashboard"] is False


def test_token_that_ray_wrote_is_readable_by_its_owner_alone(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    connect().start()  # there is none
    (tmp_path / ".ray").mkdir()
    token = tmp_path / ".ray/auth_token"
    token.write_text("0123456789abcdef")
    token.chmod(0o644)
    connect().start()
    assert token.stat().st_mode & 0o777 == 0o600


def test_ray_is_not_started_with_tokens_turned_off(
    started: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ConfigError, match="RAY_AUTH_MODE = 'disabled': whoever"):
        connect().start()
    assert started == {}


def test_command_with_credentials_is_not_submitted() -> None:
    args = ["label", "s3://AKIA:pa55word@bucket/x.parquet", "--out", "labels.parquet"]
    with pytest.raises(ValueError, match=r"the job's command = 's3://...@bucket") as caught:
        submit(args, address="http://127.0.0.1:1")
    assert "pa55word" not in str(caught.value)


def test_run_directory_holds_none_of_the_environments_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _SECRETS.items():
        monkeypatch.setenv(name, value)
    writer = DatasetWriter(str(tmp_path / "data"), name="rows", kind="embedding")
    rng = np.random.default_rng(0)
    for i in range(24):
        row = rng.normal(4 * (i % 2), 1, 4).astype(np.float32)
        writer.add("test" if i >= 20 else "train", f"row-{i}", row, truth=i % 2)
    writer.finish(["a", "b"])
    settings = {
        "data.uri": str(tmp_path / "data"),
        "data.labels_per_class": 2,
        "data.builtin": "digits",
        "data.weak": "plain",
        "data.strong": "plain",
        "model.backbone": "mlp",
        "model.feature_dim": 4,
        "train.engine": "local",
        "train.epochs": 1,
        "train.batch_size": 4,
        "train.labeled_per_batch": 4,
        "train.micro_batches": 1,
        "train.num_workers": 1,
        "train.steps_per_epoch": 1,
    }
    # The report shows what the other files hold, and takes longer than the run.
    monkeypatch.setattr(Run, "report", lambda _: None)
    run = connect().train("supervised-digits", set=settings, out=str(tmp_path / "runs"))
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(files) >= 8
    for path in files:
        content = path.read_bytes()
        assert not any(value.encode() in content for value in _SECRETS.values()), path


def test_keys_of_a_bucket_cannot_lead_out_of_the_folder_they_are_copied_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir("memory://run")
    run.write_text("checkpoints/a/fine.json", "{}")
    run.download("checkpoints/a", tmp_path / "to")
    assert (tmp_path / "to/fine.json").read_text() == "{}"
    for key in ("../../../evil.json", "/evil.json", "a/../../b", "s3://b/c"):
        with pytest.raises(ValueError, match="leads out of the data set"):
            run.download("checkpoints/a", tmp_path / "to", [key])
        monkeypatch.setattr(run.files, "find", lambda _, key=key: [key])
        with pytest.raises(ValueError, match="leads out of the data set"):
            run.download("checkpoints/a", tmp_path / "to")
    assert [path.name for path in tmp_path.iterdir()] == ["to"]
