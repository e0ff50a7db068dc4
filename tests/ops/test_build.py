"""The binary: what it asks of torch, what happens without it, the script that checks it elsewhere."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ops_cases import RAW

from learning_at_home.ops import schemas
from learning_at_home.ops.library import BINARY, has_kernel

ABI_CHECK = Path(__file__).resolve().parents[1] / "abi" / "check_abi.py"


def binary() -> str:
    spec = importlib.util.find_spec(BINARY)
    assert spec is not None, "the package is not built"
    assert spec.origin is not None
    return spec.origin


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=100).stdout


def test_every_op_has_a_cpu_kernel() -> None:
    for name in schemas.SCHEMAS:
        assert has_kernel(name, "CPU"), name
        assert torch.Tag.needs_fixed_stride_order in getattr(RAW, name).default.tags


if sys.platform == "linux":  # elsewhere binaries and their tools differ

    def test_the_binary_knows_only_the_stable_abi() -> None:
        assert shutil.which("nm"), "binutils are needed to build, and here"
        symbols = [line.split()[-2:] for line in output("nm", "-D", "--undefined-only", binary()).splitlines()]
        foreign = [
            name
            for kind, name in symbols
            # versioned symbols are those of libc and libstdc++; weak ones may be absent
            if "@" not in name and kind != "w" and not re.fullmatch(r"(aoti_)?torch_\w+", name)
        ]
        assert foreign == []
        mangled = re.compile(r"_Z\w*(2at|3c10|5torch)\d")
        assert [name for _, name in symbols if mangled.match(name)] == []
        assert any(name.startswith("torch_") for _, name in symbols)

    def test_the_binary_finds_torch_without_a_path() -> None:
        dynamic = output("readelf", "-d", binary())
        needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
        assert "libtorch.so" in needed
        assert not [name for name in needed if re.match(r"lib(c10|torch_|cuda|gomp|omp)", name)]
        assert "RPATH" not in dynamic
        assert "RUNPATH" not in dynamic

    def test_the_binary_exports_nothing_of_its_own() -> None:
        exported = output("nm", "-D", "-C", "--defined-only", binary())
        assert "lah::" not in exported


def test_agrees_with_the_reference_by_the_abi_check() -> None:
    line = output(sys.executable, str(ABI_CHECK), binary())
    assert line.startswith(f"torch {torch.__version__}, Python ")
    assert line.endswith("agree with the reference\n")


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ("None", "no file learning_at_home/_C.so in this installation"),
        ("importlib.util.spec_from_file_location(name, __file__)", "invalid ELF header|not a mach-o|file"),
    ],
)
def test_without_a_binary_the_reference_serves(spec: str, cause: str, tmp_path: Path) -> None:
    script = tmp_path / "without.py"
    script.write_text(
        f"""
import importlib.util, warnings
find = importlib.util.find_spec
def hidden(name, package=None):
    return {spec} if name == "{BINARY}" else find(name, package)
importlib.util.find_spec = hidden
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from learning_at_home import ops
print([str(w.message) for w in caught if w.category is RuntimeWarning])
import torch
x = torch.randn(5, 4, requires_grad=True)
index, score, rank, offset, _, _ = ops.route_grid(x, (2, 2), 2)
out, _ = ops.combine(ops.dispatch(x, index, rank, offset)[0], score, index, rank, offset)
torch.testing.assert_close(out, x)
out.sum().backward()
x = x.detach()
torch.library.opcheck(torch.ops.learning_at_home.route_grid.default, (x, [2, 2], 2))
torch.library.opcheck(torch.ops.learning_at_home.dispatch.default, (x, index, rank, offset))
print("served")
""",
        encoding="utf-8",
    )
    warning, served = output(sys.executable, str(script)).splitlines()
    assert served == "served"
    messages = eval(warning)
    assert len(messages) == 1
    assert re.search(cause, messages[0])
    for number in "123":
        assert f"\n  {number}. " in messages[0]
