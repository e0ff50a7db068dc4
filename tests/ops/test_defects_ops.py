"""Defects that kernels of mixtures had elsewhere, one by one; those tested elsewhere stand in `defects_kernels`."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from defects import check_table
from defects_kernels import KERNELS
from ops_cases import DEVICES, RAW, TOLERANCE, assert_near, assert_same, make_case, route
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from learning_at_home import ops
from learning_at_home.nn import GridRouter, MoE, Router
from learning_at_home.ops import reference

on_devices = pytest.mark.parametrize("device", DEVICES)
ROOT = Path(__file__).resolve().parents[2]


def test_every_defect_has_its_test() -> None:
    check_table(KERNELS, range(1, 18))


@pytest.fixture
def threads() -> Iterator[None]:
    """Give torch its number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@on_devices
def test_01_the_same_bits_in_100_runs(device: str, threads: None) -> None:
    case = make_case(1, 4097, [8, 8], 4, 0.9, "ties").to(device)
    x = case.normal(4097, 3)
    first: list[Tensor] = []
    for run in range(100):
        torch.set_num_threads(run % 3 + 1)
        index, score, rank, offset = route(case)
        rows, source = RAW.dispatch(x, index, rank, offset)
        out, weight = RAW.combine(rows, score, index, rank, offset)
        results = [index, score, rank, offset, rows, source, out, weight]
        first = first or results
        for got, want in zip(results, first, strict=True):
            assert_same(got, want)


@on_devices
@pytest.mark.parametrize("capacity", [0, 1, 100])
@pytest.mark.parametrize("experts", [1, 64, 300])
def test_02_all_tokens_to_one_expert(device: str, experts: int, capacity: int) -> None:
    logits = torch.zeros(4097, experts, device=device)
    logits[:, experts // 2] = 1
    index, _, rank, offset, _, _ = ops.route_grid(logits, (experts,), 1, capacity=capacity, align=8)
    kept = capacity or 4097
    assert (index == experts // 2).all()
    assert rank.flatten().tolist() == [*range(kept), *[-1] * (4097 - kept)]
    x = torch.randn(4097, 33, device=device)
    rows, source = ops.dispatch(x, index, rank, offset, align=8)
    assert torch.equal(rows[:kept], x[:kept])
    assert not rows[kept:].any()
    assert source.tolist() == [*range(kept), *[-1] * (len(source) - kept)]
    out, _ = ops.combine(rows, torch.ones_like(x[:, :1]), index, rank, offset)
    assert torch.equal(out[:kept], x[:kept])
    assert not out[kept:].any()


@on_devices
@pytest.mark.parametrize("experts", [1, 2, 3, 7, 31, 33, 100, 160, 257, 1000, 2047, 3000, 4095, 4096])
def test_03_any_number_of_experts_and_choices(device: str, experts: int) -> None:
    for k in (1, 3, 8, 31, 32):
        for grid in ([experts], [experts // 3, 3], [5, experts // 5]):
            if min(grid) == 0:
                continue
            case = make_case(experts, 9, grid, k, 0.9).to(device)
            got = RAW.route_grid(case.logits, grid, k, **case.options, want_stats=True)
            want = reference.route_grid(case.logits, grid, k, **case.options, want_stats=True)
            for x, y in zip(got[:4], want[:4], strict=True):
                assert_same(x, y)
            for x, y in zip(got[4:], want[4:], strict=True):
                assert_near(x, y, TOLERANCE[torch.float32])


@on_devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_04_logits_are_float32_under_autocast(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    for router in (Router(64, 256, 8), GridRouter(64, (16, 16), 8)):
        router.to(device)
        x = torch.randn(1000, 64, device=device)
        want = router(x, want_losses=True)
        with torch.autocast(device, dtype=dtype):
            got = router(x, want_losses=True)
        for a, b in zip(got, want, strict=True):
            assert_same(a.detach(), b.detach())
        assert got.score.dtype == torch.float32
        coarse = ops.route_grid(router.proj(x).to(dtype), router.grid, 8)  # what is to be avoided is seen here
        assert not torch.equal(coarse.index, want.index)


@on_devices
def test_05_neighbouring_floats_are_ordered_and_scores_are_the_logits(device: str) -> None:
    start = torch.tensor(3.7).view(torch.int32)
    ladder = (start + torch.arange(1024)).int().view(torch.float32)  # each the next float after the one before
    torch.manual_seed(5)
    for sign in (1, -1):
        order = torch.stack([torch.randperm(1024) for _ in range(20)])
        logits = (sign * ladder[order]).to(device)
        chosen = ops.route_grid(logits, (1024,), 32)
        want = logits.sort(dim=1, descending=True)
        assert torch.equal(chosen.index.long(), want.indices[:, :32])
        assert_same(chosen.score, want.values[:, :32].contiguous())
    grid = torch.randn(50, 64, device=device)
    chosen = ops.route_grid(grid, (32, 32), 8)
    row, column = chosen.index.long() // 32, chosen.index.long() % 32
    assert_same(chosen.score, grid.gather(1, row) + grid.gather(1, 32 + column))


def test_06_inputs_are_of_unit_scale_and_errors_are_relative() -> None:
    case = make_case(6, 2000, [32, 32], 4)
    for x in (case.logits, case.normal(2000, 64), case.normal(2000, 64, dtype=torch.bfloat16)):
        assert x.float().std().item() == pytest.approx(1, rel=0.02)
    x = case.normal(100, 100, dtype=torch.float64)
    for dtype, tolerance in TOLERANCE.items():
        for scale in (1e-3, 1.0):  # no absolute tolerance that small values would pass under
            got = (scale * x).to(dtype)
            assert_near(got, got, tolerance)
            with pytest.raises(AssertionError):
                assert_near(got * (1 + 4 * tolerance), got, tolerance)
            with pytest.raises(AssertionError):
                assert_near(torch.zeros_like(got), got, tolerance)


def cuda_sources() -> list[tuple[str, str]]:
    """(name, text without comments)"""
    folder = ROOT / "csrc" / "ops" / "cuda"
    paths = sorted([*folder.glob("*.cu"), *folder.glob("*.cuh")])
    assert len(paths) > 5
    return [(path.name, re.sub(r"//.*", "", path.read_text(encoding="utf-8"))) for path in paths]


def test_07_every_launch_names_its_stream() -> None:
    launches = [(name, launch) for name, text in cuda_sources() for launch in re.findall(r"<<<(.*?)>>>", text, re.S)]
    assert len(launches) > 8
    assert [launch for launch in launches if not launch[1].endswith(", stream")] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_07_side_streams_and_graphs_give_the_same() -> None:
    torch.manual_seed(7)
    moe = MoE(GridRouter(64, (4, 4), 2), 32).cuda().bfloat16()
    x = torch.randn(300, 64, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        want = moe(x)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(100_000_000)  # a kernel on another stream would not wait for this
            late = x.clone()
            got = moe(late)
        torch.cuda.current_stream().wait_stream(side)
        assert_same(got, want)
        graph = torch.cuda.CUDAGraph()
        still = torch.zeros_like(x)
        with torch.cuda.graph(graph):
            captured = moe(still)
        still.copy_(x)
        graph.replay()
        assert_same(captured, want)


@on_devices
@pytest.mark.parametrize("tokens", [0, 9])
def test_08_shapes_follow_from_shapes(device: str, tokens: int) -> None:
    """Without any values, forward and backward still know every shape: so nothing ever waits for a device."""

    def step() -> list[Tensor]:
        with torch.device(device):
            moe = MoE(GridRouter(16, (3, 4), 2, capacity_factor=1.5), 8)
            x = torch.randn(tokens, 16, requires_grad=True)
        out, losses = moe(x, want_losses=True)
        return [out, *torch.autograd.grad(out.sum() + losses.balance + losses.z, (x, *moe.parameters()))]

    with FakeTensorMode():
        fakes = step()
    for fake, value in zip(fakes, step(), strict=True):
        assert isinstance(fake, FakeTensor)
        assert (fake.shape, fake.dtype) == (value.shape, value.dtype)


def test_08_no_kernel_waits_or_allocates() -> None:
    waiting = re.compile(r"cuda\w*Synchronize\s*\(|cudaMemcpy(?!Async)|cudaMalloc|cudaFree|DeviceToHost|cudaHost\w+")
    found = [(name, match.group()) for name, text in cuda_sources() for match in waiting.finditer(text)]
    assert found == []


def test_09_losses_have_the_same_bits_for_any_threads(threads: None) -> None:
    torch.manual_seed(9)
    router = GridRouter(16, (8, 9), 4)
    x = torch.randn(5000, 16)
    with torch.no_grad():
        logits = router.proj(x)
    results: list[list[Tensor]] = []
    for number in (1, 2, 3, 3):
        torch.set_num_threads(number)
        route = ops.route_grid(logits.requires_grad_(), router.grid, 4, want_stats=True)
        used = route.stats[0] / route.stats[0].sum()
        losses = [route.stats[1] @ used, route.lse.square().mean()]
        results.append([route.stats.detach(), route.lse.detach(), *torch.autograd.grad(losses[0], logits)])
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert_same(got, want)


@on_devices
@pytest.mark.parametrize("k", [1, 4, 8])
def test_10_all_candidates_of_the_best_prefixes_and_columns_dead(device: str, k: int) -> None:
    """The k best rows times the k best columns hold the k best pairs only where those are alive."""
    generator = torch.Generator().manual_seed(10)
    for flavour in ("normal", "ties"):
        for seed in range(20):
            logits = make_case(seed, 1, [20, 21], k, flavour=flavour).logits
            row, column = logits[0, :20].argsort(descending=True), logits[0, 20:].argsort(descending=True)
            alive = torch.rand(20, 21, generator=generator) < 0.5
            alive[row[: 2 * k, None], column[None, : 2 * k]] = False
            bitmap = ops.alive_bitmap(alive, 420)
            got = RAW.route_grid(logits.to(device), [20, 21], k, alive=bitmap.to(device))
            want = reference.route_grid(logits, [20, 21], k, alive=bitmap)
            for x, y in zip(got[:4], want[:4], strict=True):
                assert_same(x, y)
            assert alive.flatten()[want[0][want[0] >= 0].long()].all()
            assert (want[0] >= 0).all() == (alive.sum() >= k)


@on_devices
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_12_outputs_and_gradients_have_the_dtype_of_the_tokens(device: str, dtype: torch.dtype) -> None:
    torch.manual_seed(12)
    moe = MoE(Router(16, 4, 2), 8).to(device, dtype)
    x = torch.randn(9, 16, device=device, dtype=dtype, requires_grad=True)
    route = moe.router(x)
    rows, _ = ops.dispatch(x, route.index, route.rank, route.offset)
    rows.retain_grad()
    answers = moe.experts(rows, route.offset)
    out, weight = ops.combine(answers, route.score, route.index, route.rank, route.offset, residual=x)
    out.sum().backward()
    for tensor in (rows, rows.grad, answers, out, x.grad, *(weight.grad for weight in moe.parameters())):
        assert tensor is not None
        assert tensor.dtype == dtype
    assert weight.dtype == torch.float32
    assert moe(x).dtype == dtype


def test_15_an_isolated_build_finds_the_torch_that_is_there(tmp_path: Path) -> None:
    """pip hides the environment from a build through PYTHONPATH; a torch that is not seen is downloaded again."""
    found = subprocess.run(
        [sys.executable, "-I", str(ROOT / "build_backend" / "find_torch.py")],
        env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONNOUSERSITE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert Path(found.stdout.strip(), "torch", "csrc", "stable").is_dir()
    without = subprocess.run(
        [sys.executable, "-I", "-S", str(ROOT / "build_backend" / "find_torch.py")],  # -S: no packages
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert without.stdout.strip() == ""


def test_15_the_source_archive_has_all_sources(tmp_path: Path) -> None:
    assert importlib.util.find_spec("scikit_build_core"), "what builds the package is there in tests"
    code = f"import backend; print(backend.build_sdist({str(tmp_path)!r}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "build_backend")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    needed = ["CMakeLists.txt", "pyproject.toml", "LICENSE", "README.md"]
    for folder in ("csrc", "cmake", "build_backend", "learning_at_home"):
        paths = (path for path in (ROOT / folder).rglob("*.*") if "__pycache__" not in path.parts)
        needed += [path.relative_to(ROOT).as_posix() for path in paths if path.is_file() and path.suffix != ".so"]
    assert len(needed) > 200
    assert [name for name in needed if name not in packed] == []


def test_16_the_stream_of_torch_may_be_missing() -> None:
    """Only a torch with CUDA gives streams: a binary that insists on that would not load beside another."""
    spec = importlib.util.find_spec("learning_at_home._C")
    assert spec is not None
    assert spec.origin is not None
    symbols = subprocess.run(["nm", "-D", spec.origin], capture_output=True, text=True, timeout=60, check=True).stdout
    streams = [line.split()[-2] for line in symbols.splitlines() if "current_cuda_stream" in line]
    assert all(kind in "wv" for kind in streams)  # weak; none in a build without CUDA
    text = (ROOT / "csrc" / "ops" / "launch.h").read_text(encoding="utf-8")
    assert re.search(r"__attribute__\(\(weak\)\)[^;]*\baoti_torch_get_current_cuda_stream\(", text)
