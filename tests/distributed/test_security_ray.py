"""A real Ray lets nobody in without its token."""

from __future__ import annotations

import os

import pytest
import ray

pytestmark = pytest.mark.ray


def test_request_without_the_token_or_with_a_wrong_one_is_refused(ray_local: str) -> None:
    grpc = pytest.importorskip("grpc")
    address = ray.get_runtime_context().gcs_address
    with grpc.insecure_channel(address) as channel:
        nodes = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")

        def ask(token: str | None) -> bytes:
            told = [] if token is None else [("authorization", f"Bearer {token}")]
            answer: bytes = nodes(b"", metadata=told, timeout=20)
            return answer

        for token in (None, "", "f" * 32):
            with pytest.raises(grpc.RpcError) as caught:
                ask(token)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert ray.get_runtime_context().get_node_id() == ray.nodes()[0]["NodeID"]
        assert len(ask(os.environ["RAY_AUTH_TOKEN"])) > 0
