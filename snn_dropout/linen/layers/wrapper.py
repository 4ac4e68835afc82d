"""Any linen module with lost connections, the same at every time step."""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import Scope

from snn_dropout._checks import layers as _checks
from snn_dropout._checks import masks as _mask_checks
from snn_dropout._checks import parameters as _parameter_checks
from snn_dropout._checks.attributes import check_attributes
from snn_dropout._checks.modules import check_module
from snn_dropout.functional.bits import draw_bits
from snn_dropout.functional.masks import fill_like
from snn_dropout.functional.parameters import (
    chosen,
    is_kernel,
    lose_connections,
    mask_shape,
    words_shape,
)
from snn_dropout.linen._held import held, held_rate, note_sequence, path_of
from snn_dropout.linen._parameters import LOST, look, parameters_of, with_parameters
from snn_dropout.linen._scopes import bind, check_whole
from snn_dropout.linen._simulation import lift
from snn_dropout.linen._surroundings import stand_in, wrappers
from snn_dropout.linen.layers.dropconnect import DropConnectLinear
from snn_dropout.linen.state import Leaves

Path = tuple[str, ...]


class DropConnect(nn.Module):
    """Loses connections of any module: one mask a parameter, held, for all of a batch.

    ``K' = where(M, K, 0) / (1 - p)``,   ``M ~ Bernoulli(1 - p)``, once;   for each kernel
    ``K`` of the module, which then runs with ``K'``

    In inference the module runs as it is. It is transparent: parameters, their names
    and keys are those of the module by itself, so weights load unchanged. The mask of the
    parameter ``a/kernel`` lies in the state as ``a/kernel_mask/mask``, one bit a
    connection, ``[1, ...]``, where the first axis stands for the batch that shares it;
    beside it the ``p`` that it was drawn with, ``mask_p``. In mode ``'s'`` the collection
    ``"state"`` carries both from call to call; in mode ``'m'`` one call is the whole
    simulation. See ``snn_dropout.linen.state``.

    A cell of ``nn.RNN`` stays one in the wrapper. (A module made inline in a compact
    method keeps its own name: name that one, not ``DropConnect``.)

    Example::

      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> import snn_dropout as sd
      >>> layer = sd.DropConnect(nn.Conv(3, (3, 3)), p=0.5, step_mode='m')
      >>> x_seq = jnp.ones((5, 2, 8, 8, 4))                      # [T, N, H, W, C]
      >>> variables = layer.init(jax.random.key(0), x_seq, deterministic=False)
      >>> y_seq, updated = layer.apply(
      ...   variables, x_seq, deterministic=False, mutable=['state'],
      ...   rngs={'dropout': jax.random.key(1)})
      >>> jax.tree.map(jnp.shape, updated['state'])
      {'kernel_mask': {'mask': (1, 3, 3, 4, 1), 'mask_p': (1, 1, 1, 1, 1)}}

    Attributes:
      module: any linen module, in a class, inline or shared.
      p: the probability that a connection is dropped, a static number in [0, 1].
      step_mode: ``'s'`` where the module takes one step, ``'m'`` where it takes all,
        ``[T, N, ...]``: ``nn.Dense``, for which all leading axes are alike, or
        ``nn.RNN``.
      filter: which parameters lose connections: a function of a path in the tree of the
        module, a tuple of names; by default those named ``'kernel'``.
      deterministic: True for inference, False for training; field or argument.
      rng_collection: the RNG stream the masks are drawn from.
      state_collection: the collection the masks are stored in.

    Source: Wan et al. 2013; Merity et al. 2018, "Regularizing and optimizing LSTM language
    models" (the weight-dropped LSTM), which scales in training.
    """

    module: nn.Module
    p: float = 0.5
    step_mode: str = "s"
    # No attribute of the class, which would be a method of it.
    filter: Callable[[Path], bool] = field(default_factory=lambda: is_kernel)
    deterministic: bool | None = None
    rng_collection: str = "dropout"
    state_collection: str = "state"

    def __post_init__(self) -> None:
        """Checks the fields."""
        check_module("module", self.module, nn.Module)
        if isinstance(self.module, DropConnect | DropConnectLinear):
            _parameter_checks.refuse_inner_layer(type(self.module).__name__)
        _mask_checks.check_probability(self.p)
        check_attributes(self)
        _parameter_checks.check_filter(self.filter)
        super().__post_init__()

    def setup(self) -> None:
        """Gives a module that came from outside this module's own scope."""
        module, scope = self.module, self.scope
        assert scope is not None
        assert module.scope is not None
        if module.scope.parent == scope:
            bind(module, stand_in(scope.rewound(), scope))

    def __call__(self, *args: Any, deterministic: bool | None = None, **kwargs: Any) -> Any:
        """Calls the module, in training without the connections that are lost.

        Args:
          *args: passed on; one step where ``step_mode`` is ``'s'``, all steps where it is
            ``'m'``.
          deterministic: True for inference (calls the module as it is), False for
            training; given here or as the field, not both. It is passed on as well,
            where the module's call names an argument ``deterministic``.
          **kwargs: passed on.

        Returns:
          What the module returns.

        Raises:
          TypeError: ``filter`` chooses a parameter of integers.
          ValueError: ``filter`` chooses none, a stored mask does not fit its parameter, a
            parameter is in two wrappers, or ``deterministic`` is given twice or not at
            all.
          RuntimeError: the module is called alone, or a mask can not be stored, see
            ``snn_dropout.linen.state``.
          flax.errors.InvalidRngError: the stream ``rng_collection`` is missing.
        """
        _checks.check_bound("DropConnect", self.scope)
        if self.step_mode == "m":
            check_whole(self)
            note_sequence(self, args[:1])
        self._note_wrapper()
        inference = self._merge_deterministic(deterministic)
        if deterministic is not None and _names_deterministic(self.module):
            kwargs["deterministic"] = deterministic
        if inference or self.p == 0 or self.is_initializing():
            y = self.module(*args, **kwargs)
            lift(partial(look, self._chosen), _call)(self.module)
            return y
        run = lift(partial(with_parameters, self._change), _call)
        return run(self.module, *args, **kwargs)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Any:
        """Makes the first carry of a recurrent cell, as ``nn.RNN`` asks for it."""
        cell: Any = self.module
        return cell.initialize_carry(rng, input_shape)

    @property
    def num_feature_axes(self) -> int:
        """How many axes of a recurrent cell's input are features."""
        cell: Any = self.module
        axes: int = cell.num_feature_axes
        return axes

    def _merge_deterministic(self, deterministic: bool | None) -> bool:
        # A method of its own, so that Monte-Carlo dropout can intercept it.
        return _checks.merge_deterministic(
            type(self).__name__, self.deterministic, deterministic
        )

    def _chosen(self, tops: list[Scope]) -> list[tuple[int, *Path]]:
        """Returns the parameters that lose connections, by their scope and path."""
        own = self.module.scope
        assert own is not None
        # Layers made inline lie beside the module, each under a name of its own.
        names = [() if top.path == own.path else top.path[-1:] for top in tops]
        leaves = parameters_of(tops)
        # One in a box, of `nn.with_partitioning` say, stays in it.
        parameters = [
            ((*names[number], *below), jax.tree.leaves(leaf)[0])
            for (number, *below), leaf in leaves.items()
        ]
        paths = list(itertools.compress(leaves, chosen(parameters, self.filter)))
        full = [(*tops[number].path, *below) for number, *below in paths]
        where = "/".join((*self.path, "DropConnect"))
        for top in tops:
            _parameter_checks.check_not_lost(where, full, top.flags.get(LOST, ()))
        return paths

    def _change(self, tops: list[Scope]) -> tuple[Leaves, frozenset[Path]]:
        leaves = parameters_of(tops)
        paths = self._chosen(tops)
        for number, *below in paths:
            place = self._place(tops[number], below)
            lose = partial(self._lose, place)
            leaves[number, *below] = jax.tree.map(lose, leaves[number, *below])
        return leaves, frozenset((*tops[n].path, *below) for n, *below in paths)

    def _place(self, top: Scope, below: list[str]) -> "_Place":
        scope: Any = stand_in(top.rewound(), top)
        *branches, name = below
        for branch in branches:
            scope = scope.push(branch, reuse=True)
        found = scope.get_variable(self.state_collection, f"{name}_mask")
        scope = scope.push(f"{name}_mask", reuse=True)
        place = _Place(self.rng_collection, self.state_collection, parent=scope)
        _parameter_checks.check_place(path_of(place), found, self.state_collection)
        return place

    def _lose(self, place: "_Place", parameter: jax.Array) -> jax.Array:
        drawn = not place.has_variable(self.state_collection, "mask")
        words = held(
            place,
            "mask",
            words_shape(parameter),
            jnp.uint32,
            lambda key: draw_bits(key, mask_shape(parameter), self.p),
            whole_simulation=self.step_mode == "m",
            of="parameter",
        )
        mask_p = held_rate(place, words, partial(fill_like, words, self.p), drawn=drawn)
        return lose_connections(parameter, words, mask_p, self.p)

    def _note_wrapper(self) -> None:
        assert self.scope is not None
        where = "/".join(self.path) or "DropConnect"
        noted = wrappers(self.scope)
        for module, other in noted:
            if module is self.module and other != where:
                _parameter_checks.refuse_second_wrapper(where, other)
        noted.append((self.module, where))


class _Place(nn.Module):
    """Where the mask of one parameter lies."""

    rng_collection: str
    state_collection: str


def _names_deterministic(module: nn.Module) -> bool:
    return "deterministic" in inspect.signature(type(module).__call__).parameters


def _call(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)
