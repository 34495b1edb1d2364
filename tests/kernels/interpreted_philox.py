"""Run as `python interpreted_philox.py IN OUT` under TRITON_INTERPRET=1: Triton's own draws for seeds and offsets.

IN holds int64 arrays seed and offset; OUT gets tl.randint's words and what philox_uniform's kernel wrote.
"""

import sys

import numpy as np
import torch
import triton
import triton.language as tl

from cavmae_ds.kernels.philox import philox_uniform


@triton.jit
def randint_kernel(seed, offset, out, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + place, tl.randint(tl.load(seed + place), tl.load(offset + place)).to(tl.int64))


if __name__ == "__main__":
    assert not isinstance(randint_kernel, triton.JITFunction), "TRITON_INTERPRET=1 must be set"
    given = np.load(sys.argv[1])
    seed, offset = torch.from_numpy(given["seed"]), torch.from_numpy(given["offset"])
    words = torch.empty_like(seed)
    randint_kernel[(len(seed) // 512,)](seed, offset, words, BLOCK=512)
    np.savez(sys.argv[2], words=words.numpy(), uniform=philox_uniform(seed, offset).numpy())
