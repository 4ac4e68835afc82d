"""What the compiler is told where a program runs once, so that it takes little time."""

import jax

# The other of two code generators takes up to two fifths less time, for slower code. Newer
# compilers have one only. A program in one part takes a tenth less than one in many, which
# are for more cores.
LITTLE_WORK = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    LITTLE_WORK += " --xla_cpu_use_fusion_emitters=false"
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
