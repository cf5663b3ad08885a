"""Secrets in addresses: masked wherever they are shown, refused wherever they would be kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelmesh.datasets.masking import MASK, masked_text, masked_uri, refuse_secrets

_SECRET = "s3cr3tS3cr3t"
_WITH_SECRETS = [
    f"s3://AKIA123:{_SECRET}@bucket/digits",
    f"s3://AKIA123:abc/{_SECRET}+x@bucket/digits",
    f"https://user:{_SECRET}@host:8443/path",
    f"https://{_SECRET}@host/path",
    f"postgresql+psycopg://mlflow:{_SECRET}@db:5432/runs",
    f"simplecache::s3://AKIA123:{_SECRET}@bucket/a.zip",
    f"zip://digits::https://host/a.zip?token={_SECRET}",
    f"https://x.blob.core.windows.net/c/a?sv=2024&sig={_SECRET}&se=1",
    f"https://b.s3.amazonaws.com/a?X-Amz-Credential=q&X-Amz-Signature={_SECRET}",
    f"s3://bucket/a?aws_secret_access_key={_SECRET}",
    f"HTTPS://host/#access_token={_SECRET}",
]
_PLAIN = [
    "runs",
    "/data/a@b/c:d@e",
    "memory://digits",
    "s3://bucket/digits?versionId=abc",
    "https://host:8080/a@b",
    "http://localhost:9000",
    "abfs://container@account.dfs.core.windows.net/digits",
    "github://owner:repository@main/digits",
    "hf://datasets/owner/name@main/train",
    "sftp://somebody@host/path",
    "hf://gpt2@main/config.json",
    "hf:owner/name",
    "ray://head:10001",
]


@pytest.mark.parametrize("uri", _WITH_SECRETS)
def test_secret_is_masked_and_the_rest_stays_readable(uri: str) -> None:
    masked = masked_uri(uri)
    assert _SECRET not in masked
    assert MASK in masked
    assert masked.split("://")[0] == uri.split("://")[0]
    assert masked_uri(masked) == masked


@pytest.mark.parametrize("uri", _PLAIN)
def test_uri_without_secret_stays_as_it_is(uri: str) -> None:
    assert masked_uri(uri) == uri
    refuse_secrets(uri, "--out")


@given(
    user=st.text("abcXYZ019_-", min_size=1),
    password=st.text("abcXYZ/+=:%@&?#.", min_size=1),
    scheme=st.sampled_from(["s3", "https", "gs", "postgresql", "ftp"]),
)
def test_whatever_the_password_is_it_does_not_show(user: str, password: str, scheme: str) -> None:
    known = f"Q{password}Q"
    masked = masked_uri(f"{scheme}://{user}:{known}@host/path")
    assert masked == f"{scheme}://{MASK}@host/path"


def test_text_has_its_uris_and_the_environments_secrets_masked() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI", "RAY_AUTH_TOKEN": "0123456789ab", "A": "1"}
    text = f"cannot read 's3://k:{_SECRET}@b/x' and https://h/?sig={_SECRET} : wJalrXUtnFEMI is bad"
    masked = masked_text(f"{text} 0123456789ab (1)", environ)
    assert masked == (
        f"cannot read 's3://{MASK}@b/x' and https://h/?sig={MASK} : {MASK} is bad {MASK} (1)"
    )


def test_path_of_a_token_file_is_no_secret() -> None:
    environ = {"RAY_AUTH_TOKEN_PATH": "/home/somebody/token", "API_KEY": "short"}
    assert masked_text("short /home/somebody/token", environ) == "short /home/somebody/token"


def test_configuration_with_a_secret_is_refused_by_its_key_without_showing_it() -> None:
    config = {"data": {"uri": "memory://a"}, "list": [{"deep": _WITH_SECRETS[0]}], "seed": 3}
    with pytest.raises(ValueError, match=r"^list\.deep = 's3://\*\*\*@bucket") as e:
        refuse_secrets(config, "")
    assert _SECRET not in str(e.value)
    assert "AWS_ACCESS_KEY_ID" in str(e.value)
