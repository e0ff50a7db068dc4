"""tests/cpp/cuda_emulation/rewrite.py: CUDA sources as C++, or an error."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "cpp" / "cuda_emulation" / "rewrite.py"
rewrite = runpy.run_path(str(SCRIPT))["rewrite"]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("f<<<1, 2>>>(x);", "::lah::cuda_emulation::launch(f, 1, 2)(x);"),
        (
            "f<a<b>, c>\n    <<<g(1), 2, 0, s>>>(\n x);",
            "::lah::cuda_emulation::launch(f<a<b>, c>\n    , g(1), 2, 0, s)(\n x);",
        ),
        ("__shared__ int64_t row[kMax][2];", "auto& row = ::lah::cuda_emulation::shared<int64_t[kMax][2]>([] {});"),
        ("__shared__ Choices choices;", "auto& choices = ::lah::cuda_emulation::shared<Choices>([] {});"),
        ("extern __shared__ char m[];", "auto* m = static_cast<char*>(::lah::cuda_emulation::dynamic_shared());"),
    ],
)
def test_launches_and_shared_variables(source: str, target: str) -> None:
    assert rewrite(source) == target
    assert rewrite(source).count("\n") == source.count("\n")


@pytest.mark.parametrize("source", ["__shared__ int a, b;", "__shared__ alignas(16) int a;", "x = (<<<1, 2>>>(a);"])
def test_what_is_not_understood_is_an_error(source: str) -> None:
    with pytest.raises(ValueError, match=r"not understood|without a kernel"):
        rewrite(source)
