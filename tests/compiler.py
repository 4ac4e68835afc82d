"""What keeps the compiler from taking long over a program that runs once."""

import functools
import threading

import jax

# The other of two code generators takes up to two fifths less time, for slower code. Newer
# compilers have one only. A program in one part takes a tenth less than one in many, which
# are for more cores.
LITTLE_WORK = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    LITTLE_WORK += " --xla_cpu_use_fusion_emitters=false"
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"


def reuse_contexts():
    """Lowers all programs of a thread in one context of MLIR, as newer JAX does by itself.

    To make a context takes two fifths of the time in which a small program is lowered, and
    the context is kept as long as the program is.
    """
    if jax.__version_info__ >= (0, 12):
        return
    from jax._src.interpreters import mlir

    make, of_thread = mlir.make_ir_context, threading.local()

    @functools.wraps(make)
    def make_once():
        if not hasattr(of_thread, "context"):
            of_thread.context = make()
        return of_thread.context

    mlir.make_ir_context = make_once
