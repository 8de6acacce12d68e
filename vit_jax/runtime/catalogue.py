"""GPUs and TPUs that programs can be compiled for, with the peak figures that their makers publish.

Every row was compiled for with jax 0.10.2 and libtpu 0.0.42. A new one is a row of TARGETS.
"""

import dataclasses
from typing import Any

GIB = 2**30
FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
SQUARE = ('2x2', '4x4', '4x8', '8x8', '8x16', '16x16')
DEEP = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16')


@dataclasses.dataclass(frozen=True)
class Peaks:
  """Published figures of one device, in units a second.

  Attributes:
    flops: of dense products by dtype; float32 as JAX multiplies it by default.
    memory: bytes read and written.
    link: bytes sent to the other devices of the host (GPU), or of the slice (TPU).
    network: bytes sent to other hosts; None: as `link`.
    source: where the figures stand.
  """

  flops: dict[str, float]
  memory: float
  link: float
  network: float | None
  source: str


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of device, as a row of TARGETS.

  Attributes:
    memory: bytes of a device, as its driver or compiler counts them.
    kind: JAX's name for it.
    topologies: of a TPU, the shapes that can be rented, the smallest first.
    card: of a GPU, what its description says.
  """

  platform: str
  memory: int
  kind: str
  peaks: Peaks
  topologies: tuple[str, ...] = ()
  card: dict[str, Any] = dataclasses.field(default_factory=dict)
  options: dict[str, Any] = dataclasses.field(default_factory=dict)


def gpu(
  kind: str,
  memory: int,
  cores: int,
  capability: tuple[int, int],
  flops: tuple[float, float],
  bandwidth: float,
  link: float,
  network: float,
  source: str,
  **card: Any,
) -> Kind:
  """A row of TARGETS for a card of compute capability `capability`; flops as (16 bit, float32)."""
  half, single = flops
  # Before 8.0 no unit multiplies bfloat16: XLA does it in float32.
  numbers = {'float16': half, 'bfloat16': half if capability >= (8, 0) else single}
  peaks = Peaks(numbers | {'float32': single}, bandwidth, link, network, source)
  about = {'cores': cores, 'major': capability[0], 'minor': capability[1], **card}
  return Kind('gpu', memory, kind, peaks, card=about)


def tpu(
  kind: str,
  gib: float,
  flops: float,
  bandwidth: float,
  link: float,
  source: str,
  topologies: tuple[str, ...],
  **options: Any,
) -> Kind:
  """A row of TARGETS; `gib` is the memory that its compiler hands out, and `link` of all ports."""
  # JAX multiplies float32 in one pass of bfloat16 unless told otherwise.
  numbers = {dtype: flops for dtype in ('float16', 'bfloat16', 'float32')}
  peaks = Peaks(numbers, bandwidth, link, None, source)
  return Kind('tpu', int(gib * GIB), kind, peaks, topologies, options=options)


AMPERE = dict(shared=167_936, optin=166_912, threads=2048, fpus=64, l2=41_943_040, clock=1.41)
HOPPER = dict(shared=233_472, optin=232_448, threads=2048, fpus=128, l2=52_428_800, clock=1.98)
ADA = dict(shared=102_400, optin=101_376, threads=1536, fpus=128)
# Dense figures: where a data sheet gives those with sparsity, half of them.
TARGETS = {
  'h100': gpu(
    'NVIDIA H100 80GB HBM3', 84_942_979_072, 132, (9, 0), (989.4e12, 494.7e12), 3.35e12, 450e9,
    50e9, 'NVIDIA H100 SXM data sheet; DGX H100: 400 Gb/s a GPU', **HOPPER,
  ),
  'h200': gpu(
    'NVIDIA H200', 151_397_597_184, 132, (9, 0), (989.4e12, 494.7e12), 4.8e12, 450e9, 50e9,
    'NVIDIA H200 SXM data sheet; DGX H200: 400 Gb/s a GPU', **HOPPER,
  ),
  'a100': gpu(
    'NVIDIA A100-SXM4-80GB', 85_094_498_304, 108, (8, 0), (312e12, 156e12), 2.039e12, 300e9, 25e9,
    'NVIDIA A100 data sheet, SXM 80 GB; DGX A100: 200 Gb/s a GPU', **AMPERE,
  ),
  'a100-40': gpu(
    'NVIDIA A100-SXM4-40GB', 42_298_834_944, 108, (8, 0), (312e12, 156e12), 1.555e12, 300e9, 25e9,
    'NVIDIA A100 data sheet, SXM 40 GB; DGX A100: 200 Gb/s a GPU', **AMPERE,
  ),
  'l40s': gpu(
    'NVIDIA L40S', 47_697_362_944, 142, (8, 9), (362e12, 183e12), 864e9, 32e9, 12.5e9,
    'NVIDIA L40S data sheet; PCIe 4 x16; network assumed 100 Gb/s a GPU', **ADA, l2=100_663_296,
    clock=2.52,
  ),
  'l4': gpu(
    'NVIDIA L4', 23_659_151_360, 58, (8, 9), (121e12, 60e12), 300e9, 32e9, 12.5e9,
    'NVIDIA L4 data sheet; PCIe 4 x16; network assumed 100 Gb/s a GPU', **ADA, l2=50_331_648,
    clock=2.04,
  ),
  'v100': gpu(
    'Tesla V100-SXM2-16GB', 16_935_682_048, 80, (7, 0), (125e12, 15.7e12), 900e9, 150e9, 12.5e9,
    'NVIDIA V100 data sheet, SXM2; DGX-1: 100 Gb/s for two GPUs, taken as one', shared=98_304,
    optin=98_304, threads=2048, fpus=64, l2=6_291_456, clock=1.53,
  ),
  't4': gpu(
    'Tesla T4', 15_828_320_256, 40, (7, 5), (65e12, 8.1e12), 320e9, 16e9, 12.5e9,
    'NVIDIA T4 data sheet; PCIe 3 x16; network assumed 100 Gb/s a GPU', shared=65_536,
    optin=65_536, threads=1024, fpus=64, l2=4_194_304, clock=1.59,
  ),
  # Of v2 and v3 JAX sees each of a chip's two cores as a device: half of a chip's figures.
  'v2': tpu('TPU v2', 7.48, 22.5e12, 350e9, 124e9,
            'Google Cloud, TPU v2; doi:10.1145/3360307 (4 links of 496 Gb/s)', SQUARE),
  'v3': tpu('TPU v3', 15.48, 61.5e12, 450e9, 164e9,
            'Google Cloud, TPU v3; doi:10.1145/3360307 (4 links of 656 Gb/s)', SQUARE),
  'v4': tpu('TPU v4', 30.75, 275e12, 1.228e12, 300e9,
            'Google Cloud, TPU v4; arXiv:2304.01433 (6 links of 50 GB/s)', DEEP,
            chip_config_name='megacore'),
  'v5e': tpu('TPU v5 lite', 15.75, 197e12, 819e9, 200e9, 'Google Cloud, TPU v5e', FLAT),
  'v5p': tpu('TPU v5', 95.74, 459e12, 2.765e12, 600e9, 'Google Cloud, TPU v5p', DEEP),
  'v6e': tpu('TPU v6 lite', 31.25, 918e12, 1.638e12, 448e9, 'Google Cloud, TPU v6e', FLAT),
}  # fmt: skip
CARD = """gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared} threads_per_core_limit: {threads}
  core_count: {cores} fpus_per_core: {fpus} block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth} l2_cache_size: {l2} clock_rate_ghz: {clock}
  device_memory_size: {memory} shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }} registers_per_core_limit: 65536
  registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{kind}" """
