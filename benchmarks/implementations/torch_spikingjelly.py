"""SpikingJelly on PyTorch: the layers that this package has the counterparts of."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn

from benchmarks import checks
from benchmarks.implementations import Task, timed

CLASSES = 10


def _task(network: nn.Module, run: Callable[[], Any], check: Callable[[Any], None]) -> Task:
    """Makes a task of calls that each start a new simulation.

    PyTorch compiles no program that could be asked for its memory: it is that by which
    the largest resident memory grows in the first call.
    """
    known = {}

    def prepare(number: int) -> tuple[()]:
        torch.manual_seed(number)
        functional.reset_net(network)
        return ()

    def check_once() -> None:
        prepare(3)
        before = _peak_resident_mib()
        result = run()
        if before is not None:
            known["MiB"] = _peak_resident_mib() - before
        check(result)

    return Task(timed(run, prepare), check_once, known)


def _peak_resident_mib() -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024


def dropout(steps: int, examples: int, units: int, p: float, gradient: bool) -> Task:
    """``Dropout`` in mode 'm'."""
    return _dropout(layer.Dropout(p, "m"), (steps, examples, units), p, gradient=gradient)


def dropout_2d(steps: int, examples: int, side: int, channels: int, p: float) -> Task:
    """``Dropout2d`` in mode 'm', in its own layout: channels before space."""
    shape = (steps, examples, channels, side, side)
    return _dropout(layer.Dropout2d(p, "m"), shape, p, shared=(3, 4))


def scan(steps: int, examples: int, units: int, p: float) -> Task:
    """``Dropout`` in mode 's', in a Python loop."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = layer.Dropout(p, "s")

        def forward(self, x_seq):
            return torch.stack([self.dropout(x) for x in x_seq])

    return _dropout(Loop(), (steps, examples, units), p)


def _dropout(
    module: nn.Module,
    shape: tuple[int, ...],
    p: float,
    *,
    gradient: bool = False,
    shared: tuple[int, ...] = (),
) -> Task:
    torch.manual_seed(0)
    x_seq, dy_seq = torch.randn(shape), torch.randn(shape)
    x_seq += x_seq.sign()
    module.train()

    def run() -> tuple[Any, Any]:
        if not gradient:
            with torch.no_grad():
                return module(x_seq), None
        x = x_seq.detach().requires_grad_()
        y_seq = module(x)
        y_seq.backward(dy_seq)
        return y_seq.detach(), x.grad

    def check(result: tuple[Any, Any]) -> None:
        y_seq, dx_seq = result
        checks.check_dropout(x_seq, y_seq, p, shared=shared)
        if gradient:
            expected = torch.where(y_seq != 0, dy_seq / (1 - p), 0)
            checks.check_close("gradients", dx_seq, expected)

    return _task(module, run, check)


def dropconnect_training(
    steps: int, examples: int, inputs: int, outputs: int, p: float, invariant: bool
) -> Task:
    """``DropConnectLinear``: value, gradients of parameters and input."""
    torch.manual_seed(0)
    module = layer.DropConnectLinear(
        inputs, outputs, p=p, invariant=invariant, step_mode="m"
    )
    x_seq = torch.randn(steps, examples, inputs)
    dy_seq = torch.randn(steps, examples, outputs)

    def run(x_seq=x_seq, dy_seq=dy_seq):
        module.zero_grad()
        x = x_seq.detach().requires_grad_()
        y_seq = module(x)
        y_seq.backward(dy_seq)
        return y_seq.detach(), x.grad

    def check(_: Any) -> None:
        # With weights and inputs of 1 an output counts the connections that are left.
        with torch.no_grad():
            module.weight.fill_(1)
            module.bias.fill_(0)
        functional.reset_net(module)
        y_seq, dx_seq = run(torch.ones_like(x_seq), torch.ones_like(dy_seq))
        dkernel = module.weight.grad.T
        checks.check_connections(y_seq, dx_seq, dkernel, p, invariant)
        module.reset_parameters()

    return _task(module, run, check)


def dropconnect_inference(
    steps: int, examples: int, inputs: int, outputs: int, p: float, samples: int
) -> Task:
    """The inference of ``DropConnectLinear``, which draws samples."""
    torch.manual_seed(0)
    module = layer.DropConnectLinear(
        inputs, outputs, p=p, samples_num=samples, step_mode="m"
    ).eval()
    x_seq = torch.randn(steps, examples, inputs)

    def run():
        with torch.no_grad():
            return module(x_seq)

    def check(y_seq: torch.Tensor) -> None:
        kernel, bias = module.weight.detach().T, module.bias.detach()
        checks.check_inference(y_seq[0, :2], x_seq[0, :2], kernel, bias, p, samples)

    return _task(module, run, check)


def train_network(steps: int, examples: int, inputs: int, hidden: int, p: float) -> Task:
    """One training step of the network in ``network.py``."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise((inputs, hidden, hidden, CLASSES)):
        linear = layer.Linear(fan_in, fan_out, step_mode="m")
        nn.init.normal_(linear.weight, std=3 * fan_in**-0.5)
        nn.init.zeros_(linear.bias)
        lif = neuron.LIFNode(surrogate_function=surrogate.ATan(), step_mode="m")
        modules += [linear, lif, layer.Dropout(p, "m")]
    network = nn.Sequential(*modules[:-1]).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    x_seq = (torch.rand(steps, examples, inputs) < 0.3).float()
    labels = torch.arange(examples) % CLASSES

    def run():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x_seq).mean(0), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    def check(loss: float) -> None:
        masks = [module.mask for module in network if isinstance(module, layer.Dropout)]
        moved = [bool((weight.grad != 0).any()) for weight in network.parameters()]
        checks.check_training(loss, masks, p, moved)

    return _task(network, run, check)
