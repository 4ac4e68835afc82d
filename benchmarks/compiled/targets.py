"""The devices that programs are compiled for, without having one.

A compiler reads what it needs of its device from a description; only running a program
takes the device itself. Nothing here may import JAX before ``prepare`` was called.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
from typing import Any

# An H100 as XLA describes it, in the text form of its `GpuTargetConfigProto`.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """A kind of device.

    Attributes:
      name: what the command line calls it.
      title: what the table calls it.
      platform: what JAX calls it.
      packages: the packages that compile for it; ``{jax}`` is the version of JAX.
      modules: what they are imported by.
      environment: what has to be set before JAX is imported.
      topologies: the arguments of ``get_topology_desc`` by the number of chips.
    """

    name: str
    title: str
    platform: str
    packages: tuple[str, ...]
    modules: tuple[str, ...]
    environment: dict[str, str]
    topologies: dict[int, dict[str, str]]

    def missing(self) -> str | None:
        """Returns what to type where its compiler is not installed, or None."""
        if all(importlib.util.find_spec(module) for module in self.modules):
            return None
        jax = importlib.metadata.version("jax")
        packages = " ".join(package.format(jax=jax) for package in self.packages)
        return f"python -m pip install {packages}"

    def prepare(self) -> None:
        """Sets what JAX reads when it is imported."""
        os.environ.update(self.environment)

    def mesh(self, chips: int) -> Any:
        """Returns a mesh of so many chips along ``"data"``, none of which is there."""
        import numpy as np
        from jax.experimental import topologies
        from jax.sharding import Mesh

        described = topologies.get_topology_desc(
            platform=self.platform, **self.topologies[chips]
        )
        return Mesh(np.array(described.devices[:chips]), ("data",))


TARGETS = {
    target.name: target
    for target in (
        Target(
            "h100",
            "H100",
            "cuda",
            ("jax-cuda12-plugin=={jax}", "jax-cuda12-pjrt=={jax}", "nvidia-cuda-nvcc-cu12"),
            ("jax_cuda12_plugin", "jax_plugins.xla_cuda12"),
            {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
            {
                chips: {"topology_name": size, "topology": size, "target_config": H100}
                for chips, size in ((1, "1x1x1"), (8, "1x1x8"))
            },
        ),
        Target(
            "v5e",
            "TPU v5e",
            "tpu",
            ("libtpu",),
            ("libtpu",),
            {
                "JAX_PLATFORMS": "cpu",
                "TPU_SKIP_MDS_QUERY": "1",
                "TPU_ACCELERATOR_TYPE": "v5litepod-4",
                "TPU_WORKER_HOSTNAMES": "localhost",
                # No device is used, so several processes may load the library.
                "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            },
            {1: {"topology_name": "v5e:2x2x1"}, 8: {"topology_name": "v5e:2x4x1"}},
        ),
    )
}
