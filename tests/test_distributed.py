"""DistributedDataParallel and FSDP2 with two gloo ranks on the CPU."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from models import images, norms, small_cnn, vectors
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastsn

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(),
        reason="torch.distributed was built without gloo",
    ),
    pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning"),
]


def run(worker: Callable[..., None], folder: Path, *args: object) -> None:
    """Runs ``worker(rank, *args)`` on two ranks; a failure of either fails the test."""
    mp.start_processes(
        _entry, args=(worker, str(folder / "store"), args), nprocs=2, start_method="fork"
    )


def _entry(rank: int, worker: Callable[..., None], store: str, args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        torch.manual_seed(100 + rank)  # every rank draws numbers of its own
        worker(rank, *args)
    finally:
        dist.destroy_process_group()


def assert_equal_on_every_rank(tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        other = tensor.detach().clone()
        dist.broadcast(other, src=0)
        assert torch.equal(other, tensor.detach())


def _ddp(rank: int, broadcast_buffers: bool, update: str, grouped: bool) -> None:
    model = small_cnn()
    group = fastsn.apply(model, "bssn", update=update)
    if not grouped:
        group.detach()
    before = vectors(model)
    parallel = DistributedDataParallel(model, broadcast_buffers=broadcast_buffers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (parallel(images()).mean() - parallel(images()).mean()).backward()
        optimizer.step()
        assert_equal_on_every_rank(vectors(model))
        assert_equal_on_every_rank([p.grad for p in model.parameters()])
    assert_equal_on_every_rank(list(model.parameters()))
    assert not all(torch.equal(a, b) for a, b in zip(before, vectors(model), strict=True))


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("broadcast_buffers", [True, False])
def test_ddp_equal_vectors_on_every_rank(
    broadcast_buffers: bool, grouped: bool, tmp_path: Path
) -> None:
    run(_ddp, tmp_path, broadcast_buffers, "forward", grouped)


def _ddp_conv(rank: int, broadcast_buffers: bool) -> None:
    layer = fastsn.conv_spectral_norm(nn.Conv2d(3, 4, 3), input_shape=(8, 8))
    parallel = DistributedDataParallel(layer, broadcast_buffers=broadcast_buffers)
    for _ in range(2):
        parallel(images()).mean().backward()
        assert_equal_on_every_rank([*layer.parametrizations.weight[0].vectors()[0]])
        assert_equal_on_every_rank([layer.parametrizations.weight.original.grad])


def test_ddp_conv_spectral_norm(tmp_path: Path) -> None:
    run(_ddp_conv, tmp_path, False)


def test_ddp_step_mode(tmp_path: Path) -> None:
    run(_ddp, tmp_path, True, "step", True)


def _fsdp(rank: int, update: str, nested: bool) -> None:
    torch.manual_seed(0)  # fully_shard expects equal weights on every rank
    model = small_cnn()
    fastsn.apply(model, "bssn", update=update)
    plain = copy.deepcopy(model)
    if nested:
        for i in (0, 4):
            fully_shard(model[i])
    fully_shard(model)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, model)]
    for _ in range(3):
        x = images(2)
        for m, optimizer in zip((plain, model), optimizers, strict=True):
            optimizer.zero_grad()
            (m(x).square().mean() - m(x + 1).mean()).backward()
            optimizer.step()
        # Gathered weights count as changed: step mode advances at every forward, as forward mode.
        if update == "forward":
            for a, b in zip(vectors(plain), vectors(model), strict=True):
                torch.testing.assert_close(a, b)
        assert_equal_on_every_rank(vectors(model))
    if update == "forward":
        for a, b in zip(plain.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(a.detach(), b.detach().full_tensor(), rtol=1e-4, atol=1e-6)
    model.eval()
    assert torch.isfinite(model(images())).all()
    model.reshard()
    with pytest.raises(RuntimeError, match="sharded DTensor: read it inside the forward"):
        norm = norms(model)[1]
        norm(model[2].parametrizations.weight.original)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("update", ["forward", "step"])
def test_fsdp2(update: str, nested: bool, tmp_path: Path) -> None:
    run(_fsdp, tmp_path, update, nested)


def test_apply_after_sharding_is_refused(tmp_path: Path) -> None:
    run(_apply_after, tmp_path)


def _apply_after(rank: int) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    fully_shard(model)
    with pytest.raises(ValueError, match="layer '0' to be normalized before FSDP shards it"):
        fastsn.apply(model)
