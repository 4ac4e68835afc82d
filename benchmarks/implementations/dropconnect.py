"""Our ``DropConnectLinear``: training gradients and inference."""

from typing import Any

import jax
import jax.numpy as jnp

import snn_dropout as sd
from benchmarks import checks
from benchmarks.implementations import Task
from benchmarks.implementations.jax_tasks import jitted_task, new_key


def training(
    steps: int, examples: int, inputs: int, outputs: int, p: float, invariant: bool
) -> Task:
    """Value, and gradients of parameters and input."""
    layer = sd.DropConnectLinear(
        inputs, outputs, p=p, invariant=invariant, step_mode="m", deterministic=False
    )
    x_seq = jax.random.normal(jax.random.key(1), (steps, examples, inputs))
    dy_seq = jax.random.normal(jax.random.key(2), (steps, examples, outputs))
    params = layer.init(jax.random.key(0), x_seq)["params"]

    def both(params: Any, x_seq: jax.Array, dy_seq: jax.Array, key: jax.Array) -> Any:
        def forward(params: Any, x_seq: jax.Array) -> jax.Array:
            return layer.apply({"params": params}, x_seq, rngs={"dropout": key})

        y_seq, pullback = jax.vjp(forward, params, x_seq)
        return y_seq, pullback(dy_seq)

    def check(jitted: Any) -> None:
        # With weights and inputs of 1 an output counts the connections that are left.
        ones = {"kernel": jnp.ones_like(params["kernel"]), "bias": 0 * params["bias"]}
        arguments = (ones, jnp.ones_like(x_seq), jnp.ones_like(dy_seq), new_key(3))
        y_seq, (grads, dx_seq) = jitted(*arguments)
        checks.check_connections(y_seq, dx_seq, grads["kernel"], p, invariant)

    return jitted_task(both, (params, x_seq, dy_seq), check)


def inference(
    kind: str, steps: int, examples: int, inputs: int, outputs: int, p: float, samples: int
) -> Task:
    """Inference, ``kind`` is the layer's ``inference``: 'sample' or 'analytic'."""
    layer = sd.DropConnectLinear(
        inputs,
        outputs,
        p=p,
        samples_num=samples,
        step_mode="m",
        deterministic=True,
        inference=kind,
    )
    x_seq = jax.random.normal(jax.random.key(1), (steps, examples, inputs))
    params = layer.init(jax.random.key(0), x_seq)["params"]

    def forward(params: Any, x_seq: jax.Array, key: jax.Array) -> jax.Array:
        return layer.apply({"params": params}, x_seq, rngs={"dropout": key})

    def check(jitted: Any) -> None:
        y = jitted(params, x_seq, new_key(3))[0, :2]
        draws = samples if kind == "sample" else None
        kernel, bias = params["kernel"], params["bias"]
        checks.check_inference(y, x_seq[0, :2], kernel, bias, p, draws)

    return jitted_task(forward, (params, x_seq), check)
