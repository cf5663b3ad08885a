"""Exact products whatever precision the program has chosen."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from labelmesh.graph_store.kernels import knn_device
from labelmesh.graph_store.kernels.knn import knn_self_join, make_bank, make_search
from labelmesh.graph_store.kernels.precision import exact_products, tf32_products
from torch import Tensor

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def medium() -> Iterator[None]:
    """bfloat16 products where the machine has them."""
    before = [b.matmul.fp32_precision for b in (torch.backends.cuda, torch.backends.mkldnn)]
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before


def clusters() -> Tensor:
    """Three tight clusters far from each other."""
    generator = torch.Generator().manual_seed(0)
    centers = 10 * torch.randn(3, 64, generator=generator)
    noise = torch.randn(2400, 64, generator=generator)
    return centers.repeat(800, 1) + 1e-2 * noise


def dense_neighbors(rows: Tensor, k: int) -> Tensor:
    distances = torch.cdist(
        rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return distances.fill_diagonal_(torch.inf).topk(k, largest=False).indices


def test_reduced_precision_does_not_change_the_neighbors() -> None:
    rows = clusters()
    assert torch.equal(knn_self_join(rows, 5)[0], dense_neighbors(rows, 5))
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


@pytest.mark.parametrize("autocast", [False, True])
def test_nor_those_of_the_device_search(autocast: bool) -> None:
    rows = clusters()
    own = torch.arange(len(rows))
    task = make_search(make_bank(rows, own, "euclidean"), rows, 5, own)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ids = knn_device.search(task)[0]
    assert torch.equal(ids, dense_neighbors(rows, 5))


def test_precision_returns_when_the_last_of_two_threads_leaves() -> None:
    switch = torch.backends.mkldnn.matmul
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with exact_products(CPU):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with exact_products(CPU):
        thread.start()
        inside.wait()
    between = switch.fp32_precision
    leave.set()
    thread.join()
    assert between == "ieee"
    assert switch.fp32_precision == "bf16"
    assert torch.backends.cuda.matmul.fp32_precision == "tf32"


def test_precision_set_for_one_backend_alone_is_kept() -> None:
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    with exact_products(CPU):
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"


def test_tf32_is_on_inside_only() -> None:
    switch = torch.backends.cuda.matmul
    before, sums = switch.fp32_precision, switch.allow_fp16_accumulation
    switch.allow_fp16_accumulation = True
    with tf32_products(CPU):
        assert switch.fp32_precision == "tf32"
        assert not switch.allow_fp16_accumulation
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        with tf32_products(CPU):
            pass
        assert switch.fp32_precision == "tf32"
    assert switch.fp32_precision == before
    assert switch.allow_fp16_accumulation
    switch.allow_fp16_accumulation = sums


def test_nobody_has_tf32_while_another_thread_needs_exact_products() -> None:
    switch, seen = torch.backends.cuda.matmul, []

    def other() -> None:
        with tf32_products(CPU):
            seen.append(switch.fp32_precision)

    thread = threading.Thread(target=other)
    with exact_products(CPU):
        thread.start()
        thread.join(0.05)
        assert seen == []
        assert switch.fp32_precision == "ieee"
    thread.join()
    assert seen == ["tf32"]
