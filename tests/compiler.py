"""What the compiler is told where a program runs once, so that it takes little time."""

import jax

# The other of two code generators takes up to two fifths less time, for slower code. Newer
# compilers have one only.
LITTLE_WORK = (
    "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
)
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
