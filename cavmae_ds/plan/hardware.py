"""GPUs as plans see them. Rates between GPUs are what one GPU receives in a collective, not what a cable carries."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cavmae_ds.errors import ConfigError

GEMM_SHARE = 0.8
"""Share of the datasheet's FLOP/s that a large bf16 matrix product reaches: 790 of 989 on an H200, [E] elsewhere."""


@dataclass(frozen=True)
class Gpu:
    """One GPU, and the links of the hosts it usually sits in."""

    name: str
    memory_gib: float
    """All that torch finds on the card."""
    datasheet_tflops: float
    """Dense bf16, 10^12 FLOP/s."""
    gemm_tflops: float
    """Large bf16 matrix products as measured: 100 % of MFU."""
    fp32_tflops: float
    """fp32 without tensor cores, datasheet: what torch uses for fp32 unless told otherwise."""
    bandwidth_tbs: float
    """Device memory, datasheet, 10^12 bytes/s."""
    link_gbs: float
    """Received by a GPU in a collective inside a host, 10^9 bytes/s."""
    network_gbs: float
    """The same between hosts."""
    source: str
    """Where these numbers are from; [E] marks our own estimate."""

    def matrix_tflops(self, precision: str) -> float:
        """What large matrix products reach in train.precision: 100 % of MFU."""
        return self.gemm_tflops if precision == "bf16" else self.fp32_tflops * GEMM_SHARE


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "h200", 139.0, 989.5, 790.0, 67.0, 4.8, 350.0, 340.0,
            "NVIDIA H200 SXM datasheet; 790 TFLOP/s measured; NVLink 350 and eight 400 Gb/s cards a host at "
            "340 GB/s as in nccl-tests #1264 and nccl #1218",
        ),
        Gpu(
            "h100", 79.1, 989.5, 790.0, 67.0, 3.35, 350.0, 340.0,
            "NVIDIA H100 SXM datasheet; 79.11 GiB as torch reports it; matrix rate of the same chip in an H200 [E]; "
            "links as h200",
        ),
        Gpu(
            "a100-80", 79.2, 312.0, 250.0, 19.5, 2.04, 230.0, 170.0,
            "NVIDIA A100 80GB SXM datasheet; 79.25 GiB as torch reports it; 0.8 of the datasheet's FLOP/s [E]; "
            "NVLink 3 and eight 200 Gb/s cards a host [E]",
        ),
        Gpu(
            "l40s", 44.4, 362.0, 290.0, 91.6, 0.864, 20.0, 10.0,
            "NVIDIA L40S datasheet (48 GB with ECC, 362 TFLOP/s dense, no NVLink); 44.4 GiB as torch reports it on an "
            "L40; 0.8 of the datasheet's FLOP/s, PCIe 4.0 x16 and 100 Gb/s a GPU [E]",
        ),
    )
}  # fmt: skip
"""The GPUs with a name; `custom` is described by options."""


def choose_gpu(
    name: str,
    memory_gib: float | None = None,
    tflops: float | None = None,
    bandwidth_tbs: float | None = None,
    link_gbs: float | None = None,
) -> Gpu:
    """A GPU of the table with some of its numbers replaced, or one that is all the caller's own (`custom`).

    tflops is the datasheet's dense rate in the run's precision; link_gbs holds inside a host and between hosts.
    Raises ConfigError for an unknown name and for a custom GPU that is not fully described.
    """
    given = {
        "--memory-gib": memory_gib,
        "--tflops": tflops,
        "--bandwidth-tbs": bandwidth_tbs,
        "--link-gbs": link_gbs,
    }
    if name == "custom":
        missing = [option for option, value in given.items() if value is None]
        if missing:
            raise ConfigError(f"--gpu custom needs {', '.join(given)}; missing: {', '.join(missing)}")
        gpu = Gpu("custom", 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, "the command line")
    elif name in GPUS:
        gpu = GPUS[name]
    else:
        raise ConfigError(
            f"--gpu must be one of {', '.join([*GPUS, 'custom'])}, got {name!r}; describe another one with --gpu custom"
        )
    if memory_gib is not None:
        gpu = replace(gpu, memory_gib=memory_gib)
    if tflops is not None:
        gpu = replace(gpu, datasheet_tflops=tflops, gemm_tflops=tflops * GEMM_SHARE, fp32_tflops=tflops)
    if bandwidth_tbs is not None:
        gpu = replace(gpu, bandwidth_tbs=bandwidth_tbs)
    if link_gbs is not None:
        gpu = replace(gpu, link_gbs=link_gbs, network_gbs=link_gbs)
    return gpu
