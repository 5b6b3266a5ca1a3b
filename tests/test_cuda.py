"""Every kernel of the library, through NVIDIA's compiler, for three cards."""

import re
from importlib import resources

import pytest

from companion.cuda import (
    PROCESSORS,
    Emulator,
    kernel_names,
    kernel_text,
    occupancy,
    usage,
)
from companion.native import CompileError

FLAGS = {
    "transpose.cu": [["-DREAL=double"], ["-DREAL=char"]],
    "reduce.cu": [
        ["-DOP=Max"],
        ["-DREAL=double", "-DWIDE=double"],
        ["-DREAL=signed char", "-DWIDE=long long", "-DOP=Max"],
    ],
    "gemm.cu": [["-DTF32"], ["-DBF16"], ["-DOUT=__half"]],
}
SHORT = {
    "softmax.cu": "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n",
    "layernorm.cu": "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n",
}
FILES = sorted(
    file.name
    for file in (resources.files("companion") / "kernels").iterdir()
    if file.name.endswith(".cu") and file.name != "primitives.cu"
)
ONLY_FROM_SM_80 = re.compile("sm_80 or later")


def builds():
    """(file, text, flags) of everything that is launched."""
    for file in FILES:
        text = kernel_text(f"kernels/{file}")
        yield file, text, []
        for flags in FLAGS.get(file, []):
            yield file, text, flags
        if file in SHORT:
            for real in ("__half", "__nv_bfloat16"):
                yield file, SHORT[file] + text, [f"-DREAL={real}"]


BUILDS = list(builds())
NAMES = [" ".join([file, *flags]) for file, _, flags in BUILDS]


@pytest.fixture(scope="module")
def nvrtc(need):
    """NVIDIA's compiler: wheels for Linux on x86-64 alone."""
    need("cupy")


@pytest.mark.parametrize("arch", PROCESSORS)
@pytest.mark.parametrize("file, text, flags", BUILDS, ids=NAMES)
def test_kernels_compile_without_spills(nvrtc, file, text, flags, arch):
    try:
        found = usage(text, *flags, arch=arch)
    except CompileError as error:
        assert arch == "sm_75" and ONLY_FROM_SM_80.search(str(error)), error
        return
    assert sorted(found) == sorted(kernel_names(text))
    for name, use in found.items():
        share = occupancy(use, 256, arch)
        print(f"{arch} {name:20} {use} occupancy {share:.0%}")
        assert use.spilled == 0, name
        assert use.shared <= 48 << 10, name
        assert share > 0, name


def test_errors_of_nvrtc_name_the_line(nvrtc):
    text = '#line 5 "page.md"\nextern "C" __global__ void f() {\n  x = 1;\n}'
    with pytest.raises(CompileError, match='^page.md, line 6: .*"x"'):
        usage(text)


def test_both_cards_take_the_same_words(nvrtc):
    """What the emulator's header defines, CUDA has under that name."""
    text = """#include <cuda_fp16.h>
    #include <cuda_bf16.h>
    extern "C" __global__ void f(float *x, int *n, unsigned *u,
                                 __half *h, __nv_bfloat16 *b) {
      __shared__ __align__(16) float room[32];
      int i = threadIdx.x % warpSize;
      room[i] = __ldg(x + i) + rsqrtf(x[i]) + __expf(x[i]) + __logf(x[i]);
      __syncthreads();
      x[i] = __fdividef(room[i], 2.0f) + max(x[i], 1.0f) + min(n[i], 3);
      n[i] = __popc(u[i]) + __clz(n[i]) + __ffs(n[i]) + __umulhi(u[i], 7u);
      u[i] = __float_as_uint(x[i]) + __float_as_int(x[i]);
      x[i] += __uint_as_float(u[i]) + __int_as_float(n[i]);
      x[i] += __shfl_sync(~0u, x[i], 3) + __shfl_xor_sync(~0u, n[i], 1);
      x[i] += __shfl_up_sync(~0u, x[i], 1) + __shfl_down_sync(~0u, x[i], 2);
      u[i] = __ballot_sync(~0u, i > 3) + __any_sync(~0u, i) +
             __all_sync(~0u, i);
      __syncwarp();
      __threadfence();
      atomicAdd(x, 1.0f), atomicAdd(n, 1), atomicSub(n, 1);
      atomicMax(n, 1), atomicMin(n, 1), atomicExch(n, 1), atomicOr(n, 1);
      atomicAnd(n, 1), atomicCAS(n, 1, 2);
      h[i] = __float2half(x[i]), b[i] = __float2bfloat16(x[i]);
      x[i] = __half2float(h[i]) + __bfloat162float(b[i]);
      h[i] = __half(x[i]), b[i] = __nv_bfloat16(x[i]);
      x[i] += float(h[i]) + float(b[i]) + make_float2(1, 2).x;
      x[i] += make_float4(1, 2, 3, 4).w + abs(x[i]) + abs(n[i]);
    }"""
    assert Emulator().compile(text).names == list(usage(text)) == ["f"]
