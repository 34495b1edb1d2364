"""Kernels that must not be shipped, for the compiler's report to catch."""

import triton
import triton.language as tl


@triton.jit
def spilling_kernel(source, out, BLOCK: tl.constexpr):
    """Each thread must hold more numbers at once than it has registers."""
    place = tl.arange(0, BLOCK)
    values = tl.load(source + place)
    total = tl.sum(values, 0)
    tl.store(out + place, tl.exp(values - total) / total)


@triton.jit
def narrow_kernel(source, out, stride, BLOCK: tl.constexpr):
    """Neighbouring threads read a stride apart, so nothing can be loaded together."""
    place = tl.arange(0, BLOCK)
    tl.store(out + place, tl.load(source + place * stride))


@triton.jit
def hoarding_kernel(a, b, out, SIZE: tl.constexpr):
    """A product whose operands pass through more shared memory than there is."""
    row, column = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    left, right = tl.load(a + row * SIZE + column), tl.load(b + row * SIZE + column)
    tl.store(out + row * SIZE + column, tl.dot(left, right))
