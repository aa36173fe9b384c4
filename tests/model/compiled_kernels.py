"""The Triton kernels compiled for a Hopper GPU, without one: Triton's package has the compiler. `test_kernels.py` runs
this file in a process of its own, since other tests choose Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wmlsearch.model import triton_kernels, triton_loss
from wmlsearch.model.kernels import GRADIENT_ELEMENTS, STATISTICS_ELEMENTS, _Matrix
from wmlsearch.model.loss_kernels import BLOCK, KINDS

NUMBERS = {"pixels": "i32", "rows": "i32", "rows_per_part": "i32", "parts": "i32", "stream": "i32", "threshold": "i32"}
FRACTIONS = {"scale": "fp32", "epsilon": "fp32", "momentum": "fp32"}
IN_BFLOAT16 = {"x", "result", "gradients"}
NOT_SPECIALISED = {"stream", "threshold"}  # whose divisibility Triton does not look at


def ptx(name: str, sizes: dict[str, Any], **flags: bool) -> str:
    """Return the code of a kernel for an H100, with pointers and numbers divisible by 16, as in a training."""
    kernel, constants = getattr(triton_kernels, name, None) or getattr(triton_loss, name), {**sizes, **flags}
    warps = constants.pop("num_warps", 4)
    signature, divisible = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        pointer = "*bf16" if argument in IN_BFLOAT16 else "*i64" if argument == "seed" else "*fp32"
        types = {**NUMBERS, **FRACTIONS, **dict.fromkeys(constants, "constexpr")}
        signature[argument] = types.get(argument, pointer)
        if argument not in {*FRACTIONS, *NOT_SPECIALISED, *constants}:
            divisible[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, divisible)
    return build(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps}).asm["ptx"]


@pytest.mark.parametrize("channels", [8, 16, 256])
def test_activations_are_read_and_written_16_bytes_at_a_time(channels: int) -> None:
    matrix = _Matrix(1, 5 * 64 * 64, channels)
    _, reduction = matrix.reduction(STATISTICS_ELEMENTS)
    assert "ld.global.v4" in ptx("partial_statistics", reduction)
    _, reduction = matrix.reduction(GRADIENT_ELEMENTS)
    assert "ld.global.v4" in ptx("partial_gradients", reduction, RELU=True, DROPOUT=True)
    _, elementwise = matrix.elementwise()
    for name in ("normalise", "input_gradients"):
        code = ptx(name, elementwise, RELU=True, DROPOUT=True)
        assert "ld.global.v4" in code, name
        assert "st.global.v4" in code, name
        assert "st.global.b16" not in code, name
        assert "cvt.rn.bf16" in code, "rounded to nearest"


def test_the_second_stages_compile() -> None:
    _, finish = _Matrix(1, 5 * 64 * 64, 16).finish()
    assert "st.global" in ptx("finish_statistics", finish, HAS_RUNNING=True)
    assert "st.global" in ptx("finish_gradients", finish)


def test_odd_sizes_compile() -> None:
    _, elementwise = _Matrix(3, 35, 3).elementwise()
    for flags in ({"RELU": False, "DROPOUT": False}, {"RELU": True, "DROPOUT": True}):
        assert "atom." not in ptx("input_gradients", elementwise, **flags)


@pytest.mark.parametrize("loss", ["bce", "bce_dice", "focal", "dice"])
@pytest.mark.parametrize("has_counted", [False, True])
def test_the_loss_reads_and_writes_16_bytes_at_a_time(loss: str, has_counted: bool) -> None:
    sizes = {"KIND": KINDS[loss], "BLOCK": BLOCK}
    code = ptx("loss_sums", sizes, HAS_COUNTED=has_counted)
    assert "ld.global.v4" in code
    assert "atom." not in code
    code = ptx("loss_gradients", sizes, HAS_COUNTED=has_counted, HAS_REGION="dice" in loss)
    assert "ld.global.v4" in code
    assert "st.global.v4" in code
    assert "lg2." not in code, "no fast logarithm"
