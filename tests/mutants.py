"""Do the tests bite? Puts small defects into copies of the library, one at a time.

Each mutant replaces one piece of text, which must occur exactly once, and names the tests
that have to fail for it. Run from the root of the project::

  python tests/mutants.py

The exit status is 1 if a mutant survives, that is, if its tests pass all the same. The
tests that are named run on the library as it is first, and have to pass there. They are of
the short depth, whose cases kill all mutants; with ``--exhaustive`` all their cases run.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = (
    *("snn_dropout", "tests", "docs", "examples", "benchmarks", ".ci", ".github"),
    *("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml"),
    *("CITATION.cff", "LICENSE"),
)
PASSED, FAILED = 0, 1  # exit statuses of pytest; all others are no verdict


@dataclass(frozen=True)
class Mutant:
    """A defect.

    Attributes:
      name: the defect in words.
      file: the file of the library that has it.
      old: the text to replace, which occurs once.
      new: the text in its place.
      tests: what pytest is told to run; one of them has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


MUTANTS = [
    # Masks: who creates, holds and reads them.
    Mutant(
        "a mask is drawn again at every step",
        "linen/_held.py",
        "        module.put_variable(collection, name, mask)",
        "        pass",
        "test_state.py::test_the_first_training_call_draws_and_later_calls_read",
    ),
    Mutant(
        "a mask is rewritten in the loop",
        "linen/_held.py",
        "        return stored\n",
        "        if module.is_mutable_collection(collection):\n"
        "            module.put_variable(collection, name, stored & stored)\n"
        "        return stored\n",
        "test_state.py::test_no_mask_is_drawn_or_written_inside_the_scan "
        "laws/test_laws.py::test_state_is_stable_after_the_first_call",
    ),
    Mutant(
        "a stored mask of another batch is taken",
        "linen/_held.py",
        "        _state_checks.check_stored_mask("
        "where, stored, shape, dtype, known=known, of=of)\n",
        "",
        "test_state.py::test_a_mask_of_another_batch_raises",
    ),
    Mutant(
        "a stored mask of another dtype is taken",
        "_checks/state.py",
        "if tuple(stored.shape) != tuple(shape) or stored.dtype != dtype:",
        "if tuple(stored.shape) != tuple(shape):",
        "test_dropconnect.py::test_missing_streams_and_stored_masks_of_another_size_raise",
    ),
    Mutant(
        "kernel and bias masks come from one key",
        "linen/_held.py",
        "mask_key(key, path, name)",
        "mask_key(key, path, 'mask')",
        "test_dropconnect.py::test_kernel_and_bias_masks_come_from_different_keys",
    ),
    Mutant(
        "all layers have one mask",
        "linen/_held.py",
        "mask_key(key, path, name)",
        "mask_key(key, (), name)",
        "laws/test_laws.py::test_another_mask_for_another_layer",
    ),
    Mutant(
        "a mask depends on what else was drawn",
        "linen/_held.py",
        "    mask = draw(mask_key(key, path, name))",
        "    mask = draw(module.make_rng(module.rng_collection))",
        "test_state.py::test_masks_inside_nn_scan_over_layers_do_not_depend_on_how_time_is_"
        "run test_state.py::test_an_instance_called_twice_has_the_same_mask_with_and_"
        "without_a_mutable_state",
    ),
    Mutant(
        "single steps draw masks that they can not keep",
        "linen/_held.py",
        "    if not kept and not whole_simulation:",
        "    if False:",
        "test_state.py::test_a_single_step_that_can_not_keep_its_mask_raises",
    ),
    Mutant(
        "whole simulations need a mutable state",
        "linen/_held.py",
        "    if not kept and not whole_simulation:",
        "    if not kept:",
        "test_state.py::test_whole_simulations_run_without_a_mutable_state",
    ),
    Mutant(
        "masks leak out of raw transforms",
        "linen/_held.py",
        "    if root_of(scope).trace_level != tracers.current_trace():",
        "    if False:",
        "test_state.py::test_a_mask_born_inside_a_raw_transform_raises",
    ),
    Mutant(
        "the guard against leaks looks at the layer's own trace",
        "linen/_held.py",
        "    if root_of(scope).trace_level != tracers.current_trace():",
        "    if scope.trace_level != tracers.current_trace():",
        "test_state.py::test_a_mask_born_inside_a_raw_transform_raises",
    ),
    Mutant(
        "a missing stream falls back to that of the parameters",
        "linen/_held.py",
        "    if not module.has_rng(stream):",
        "    if not (module.has_rng(stream) or module.has_rng('params')):",
        "test_checks.py::test_a_missing_stream_names_the_stream",
    ),
    Mutant(
        "a stored mask has the scale of the layer that reads it",
        "linen/layers/_held_dropout.py",
        "        if mask_p is None or not self.scale:",
        "        if True:",
        "test_another_p.py::test_a_mask_keeps_the_scale_it_was_drawn_with",
    ),
    Mutant(
        "the scale of a stored mask is rounded otherwise",
        "functional/masks.py",
        "jnp.where(mask_p == np.float32(p), _scale(p, wide), own)",
        "own",
        "test_another_p.py::test_reading_a_mask_rounds_as_drawing_it_does",
    ),
    Mutant(
        "a scan over time draws a mask a step",
        "linen/_held.py",
        'if (around[0] == "scan" and varies(key)) or drawn_in_vain(scope, name):',
        "if False:",
        "test_lifted.py::test_a_mask_per_step_is_refused_with_a_vmap_in_between_and_around",
    ),
    Mutant(
        "a scan over time keeps a mask a step, drawn from one key",
        "linen/_held.py",
        'if (around[0] == "scan" and varies(key)) or drawn_in_vain(scope, name):',
        "if varies(key):",
        "test_lifted.py::test_every_half_measure_leads_on",
    ),
    Mutant(
        "a scan over layers is taken for one over time",
        "linen/_surroundings.py",
        "    return any(map(varies, leaves)) if leaves else None",
        "    return False",
        "laws/test_transforms.py::test_nn_scan_over_layers_draws_a_mask_a_layer",
    ),
    Mutant(
        "what a transform traces twice is taken for a mask a step",
        "linen/_surroundings.py",
        "        _counters(scope)[_MASK, name, shape] = _FOUND",
        "        pass",
        "test_lifted.py::test_a_recurrent_network_in_both_branches_of_nn_cond",
    ),
    Mutant(
        "what is lifted around a simulation forbids its masks",
        "linen/_scopes.py",
        "debug_path=inside(SIMULATION, scope.debug_path)",
        "debug_path=scope.debug_path",
        "test_lifted.py::test_whole_simulations_inside_of_a_scan_have_masks_of_their_own",
    ),
    Mutant(
        "steps that were made examples are not noticed",
        "_checks/state.py",
        "    flat = tuple(shape[:1]) == (steps * examples,)",
        "    flat = False",
        "test_whole_sequences.py::test_steps_that_were_made_examples_are_noticed",
    ),
    Mutant(
        "a layer has masks of two shapes in one simulation",
        "linen/_held.py",
        "        _state_checks.check_one_shape(where, shape, other)\n",
        "        pass\n",
        "test_two_widths.py::test_two_widths_raise_whether_or_not_the_state_is_mutable",
    ),
    # The state of a simulation.
    Mutant(
        "the first state has moved by the step ahead",
        "linen/state.py",
        "    return start | drawn, late\n",
        "    return start | ahead, late\n",
        "test_state.py::test_init_state_draws_masks_and_makes_what_init_makes",
    ),
    Mutant(
        "leaves that exist are made anew",
        "linen/state.py",
        "    start = made | given\n",
        "    start = made\n",
        "test_state.py::test_leaves_that_exist_are_left_alone_also_by_neurons_that_move_"
        "during_init",
    ),
    Mutant(
        "a leaf that only a later call makes is taken as it is",
        "linen/state.py",
        "    _time_checks.check_none_late([path_name(path) for path in late])\n",
        "",
        "test_late_neurons.py::test_a_scan_by_hand_is_told_to_run_the_first_step",
    ),
    Mutant(
        "one of two masks is not reset",
        "linen/state.py",
        'MASK_NAMES = ("mask", "mask_p", "kernel_mask", "bias_mask")',
        'MASK_NAMES = ("mask", "mask_p", "kernel_mask")',
        "test_state.py::test_reset_masks_drops_every_kind_of_mask",
    ),
    Mutant(
        "resetting masks resets membranes too",
        "linen/reset.py",
        "leaf for path, leaf in leaves if path[-1] not in MASK_NAMES}",
        "leaf for path, leaf in leaves if False}",
        "test_state.py::test_reset_masks_drops_the_masks_and_keeps_the_membranes",
    ),
    Mutant(
        "the rows that are not done are restarted",
        "linen/reset.py",
        ", new, old)",
        ", old, new)",
        "test_state.py::test_reset_rows_restarts_single_examples_inside_a_scan",
    ),
    Mutant(
        "an axis that could be that of the layers is taken for the batch",
        "_checks/rows.py",
        "    certain = given is not None or len(possible) == 1 or rows == 1",
        "    certain = True",
        "test_reset.py::test_stacked_blocks_are_never_restarted_along_the_layers",
    ),
    # The layers.
    Mutant(
        "the features of one example are taken for examples",
        "linen/layers/dropout.py",
        '        _checks.check_has_examples("DropPath", x, step_mode)\n',
        "",
        "test_whole_sequences.py::test_a_path_is_not_dropped_feature_by_feature_under_vmap",
    ),
    Mutant(
        "init makes a mask",
        "linen/layers/_held_dropout.py",
        "deterministic or drops_nothing(self.p) or self.is_initializing()",
        "deterministic or drops_nothing(self.p)",
        "test_state.py::test_init_makes_no_mask_and_needs_no_dropout_stream",
    ),
    Mutant(
        "inference drops",
        "linen/layers/_held_dropout.py",
        "deterministic or drops_nothing(self.p) or self.is_initializing()",
        "drops_nothing(self.p) or self.is_initializing()",
        "laws/test_laws.py::test_inference_is_the_identity_and_blind_to_keys",
    ),
    Mutant(
        "inference writes the state",
        "linen/layers/_held_dropout.py",
        "        if self._drops_nothing(deterministic):\n            return x\n",
        "        if self._drops_nothing(deterministic):\n"
        "            if deterministic and self.is_mutable_collection('state'):\n"
        "                self.put_variable('state', 'mask', x == x)\n"
        "            return x\n",
        "laws/test_laws.py::test_inference_is_the_identity_and_blind_to_keys "
        "test_state.py::test_inference_between_two_training_calls_leaves_the_mask",
    ),
    Mutant(
        "mode 'm' has a mask for each step",
        "linen/layers/_held_dropout.py",
        "self._mask_shape(x.shape[1:] if whole else x.shape)",
        "self._mask_shape(x.shape)",
        "laws/test_laws.py::test_same_mask_at_every_step",
    ),
    Mutant(
        "mode 'm' takes the second axis for time",
        "linen/layers/_held_dropout.py",
        "self._mask_shape(x.shape[1:] if whole else x.shape)",
        "self._mask_shape(x.shape[:1] + x.shape[2:] if whole else x.shape)",
        "laws/test_laws.py::test_values_are_exactly_zero_or_x_over_1_minus_p",
    ),
    Mutant(
        "height is taken for the channels",
        "linen/layers/channels.py",
        "    channel_axis: int = -1",
        "    channel_axis: int = 1",
        "laws/test_laws.py::test_values_are_exactly_zero_or_x_over_1_minus_p",
    ),
    Mutant(
        "the examples of a batch lose the same connections",
        "linen/layers/dropconnect.py",
        "lambda key: draw_sharded(draw_bits, key, kernel_shape, self.p, sharding)",
        "lambda key: jnp.broadcast_to(\n"
        "                draw_bits(key, (1, *kernel_shape[1:]), self.p), packed\n"
        "            )",
        "laws/test_laws.py::test_another_mask_for_another_key_and_example",
    ),
    Mutant(
        "fresh connections are the same at every step of mode 'm'",
        "functional/linear.py",
        "        kernel_mask, bias_mask = masks(steps * examples, batch_sharding(x))",
        "        kernel_mask, bias_mask = (\n"
        "            mask if mask is None else jnp.repeat(mask, steps, 0)\n"
        "            for mask in masks(examples, None)\n"
        "        )",
        "test_dropconnect.py::test_multi_step_mode_draws_new_connections_at_every_step",
    ),
    Mutant(
        "the bias is not dropped",
        "functional/linear.py",
        "kept = jnp.where(bias_mask, bias.astype(wide), jnp.zeros((), wide))",
        "kept = bias.astype(wide).reshape((1,) * (y.ndim - 1) + (-1,))",
        "test_dropconnect.py::test_masks_are_independent_over_steps_examples_and_bias",
    ),
    Mutant(
        "training scales the connections that are left",
        "linen/layers/dropconnect.py",
        "        return activate("
        "self, self._drop_connections(x_seq, kernel, bias, whole), whole)",
        "        y = self._drop_connections(x_seq, kernel, bias, whole)\n"
        "        return activate(self, y / (1 - self.p) if self.p < 1 else y, whole)",
        "test_dropconnect.py::test_training_equals_spikingjelly",
    ),
    Mutant(
        "inference forgets the bias",
        "linen/layers/dropconnect.py",
        "moments(x_seq, kernel, bias, self.p)",
        "moments(x_seq, kernel, None, self.p)",
        "test_dropconnect.py::test_inference_equals_spikingjelly",
    ),
    Mutant(
        "a spiking activation does not move in mode 'm'",
        "linen/layers/_activation.py",
        "    if layer.is_initializing() or not whole:\n        y = layer.activation",
        "    if True:\n        y = layer.activation",
        "laws/test_laws.py::test_loop_equals_multi_step_mode_equals_simulate_equals_multistep",
    ),
    Mutant(
        "neurons that are sampled start anew at every step",
        "linen/layers/_activation.py",
        "    if not whole or layer.is_mutable_collection(layer.state_collection):\n"
        "        _keep_samples(layer, state)\n",
        "",
        "test_dropconnect.py::test_sampled_neurons_average_runs_of_single_neurons",
    ),
    # Simulations.
    Mutant(
        "a simulation returns the state that it started from",
        "linen/_simulation.py",
        "    pure_step.write(last | ",
        "    pure_step.write(start | ",
        "test_time.py::test_multistep_equals_the_loop",
    ),
    Mutant(
        "what is fresh at every step repeats",
        "linen/_simulation.py",
        "leaves, (x, *args), kwargs, mutable=written, time_step=time_step",
        "leaves, (x, *args), kwargs, mutable=written",
        "test_state.py::test_what_is_random_at_each_step_equals_the_loop_that_folds_the_step_in",
    ),
    Mutant(
        "modules that write their parameters when init runs may not",
        "linen/state.py",
        'return True if has_params else DenyList("params")',
        'return DenyList("params")',
        "test_time.py::test_modules_that_write_when_init_runs",
    ),
    Mutant(
        "what is sown by the first of two calls is lost",
        "linen/_simulation.py",
        "path: before.get(path, ()) + leaf if",
        "path: leaf if",
        "test_time.py::test_what_is_sown_is_stacked_over_time",
    ),
    Mutant(
        "the normals of sampled neurons are the same at every step",
        "linen/_simulation.py",
        "jax.random.split(key, steps), mean_seq",
        "jnp.broadcast_to(key, (steps,)), mean_seq",
        "test_dropconnect.py::test_samples_are_shared_by_the_batch_and_new_at_every_step",
    ),
    Mutant(
        "sampled neurons that are random themselves are all alike",
        "linen/_simulation.py",
        "        folds = time_step * samples + jnp.arange(samples)",
        "        folds = jnp.broadcast_to(time_step, samples)",
        "test_dropconnect.py::test_samples_of_neurons_that_are_random_themselves_are_drawn_"
        "apart",
    ),
    Mutant(
        "the state of sampled neurons that is found is not checked",
        "linen/_simulation.py",
        "        check_shape(name, given.get(path, ()), allowed.get(path, ()))",
        "        pass",
        "test_dropconnect.py::test_a_state_of_another_batch_or_number_of_samples_raises",
    ),
    Mutant(
        "a membrane of another batch is taken",
        "linen/state.py",
        "    _check_batch(given, made, name, lambda axes: init({}, axes))\n",
        "",
        "test_stale_states.py::test_membranes_of_another_batch_are_named",
    ),
    Mutant(
        "a membrane of another batch is taken where only the first call makes it",
        "linen/state.py",
        "    _check_late(init, step, made, given, name)\n",
        "",
        "test_stale_states.py::test_neurons_that_make_their_state_late_are_too",
    ),
    Mutant(
        "scores without time are averaged over the batch",
        "functional/_uncertainty.py",
        "        if averaged and whole is not None:\n",
        "        if False:\n",
        "test_scores.py::test_scores_without_time_are_not_averaged_over_the_batch",
    ),
    Mutant(
        "a simulation is not told how to carry the masks",
        "_checks/state.py",
        "    if simulated:\n",
        "    if False:\n",
        "test_collections.py::test_a_simulation_is_told_how_to_carry_them",
    ),
    Mutant(
        "a membrane of a whole sequence is taken",
        "linen/state.py",
        "        if axes := _time_checks.more_axes(leaf, one):\n",
        "        if axes := ():\n",
        "test_stale_states.py::test_membranes_of_a_whole_sequence_are_named",
    ),
    Mutant(
        "a leaf of its user with axes in front is refused",
        "_checks/time.py",
        "    if _shapes(given) == _shapes(of_sequence):\n",
        "    if True:\n",
        "test_stale_states.py::test_a_leaf_of_its_user_may_have_axes_in_front",
    ),
    Mutant(
        "a leaf that changes its dtype is not named",
        "_checks/time.py",
        "        if was == becomes or _may_become(old, becomes):\n            continue\n",
        "        continue\n",
        "test_event_frames.py::test_a_leaf_that_changes_its_dtype_is_named",
    ),
    Mutant(
        "a leaf of a weak type is refused",
        "_checks/time.py",
        "        if was == becomes or _may_become(old, becomes):\n",
        "        if was == becomes:\n",
        "test_event_frames.py::test_a_weak_type_does_not_matter",
    ),
    Mutant(
        "a layer of all steps is taken for one of a single step",
        "linen/_scopes.py",
        "                    ONE_STEP: self._one_step,\n",
        "",
        "test_nesting.py::test_every_way_in_is_closed",
    ),
    Mutant(
        "a chunk does not know its first step",
        "linen/_simulation.py",
        "    return numbers + jnp.asarray(first, numbers.dtype)\n",
        "    return numbers\n",
        "test_chunks.py::test_chunks_are_the_whole_bit_for_bit",
    ),
    Mutant(
        "the layer for another rank lies about its layout",
        "_checks/layers.py",
        '    first = space and step_axes.startswith("N, C,")\n',
        "    first = False\n",
        "test_checks.py::test_what_the_rank_error_says_drops_whole_channels_of_each_example",
    ),
    Mutant(
        "each trace of a step counts on",
        "linen/_scopes.py",
        "            _restore(scope.rng_counters, counters)",
        "            pass",
        "test_state.py::test_what_is_random_at_each_step_equals_the_loop_that_folds_the_step_in",
    ),
    Mutant(
        "a shared module has the keys of its path",
        "linen/_scopes.py",
        "        copy.rngs = _folded(scope.rngs, time_step)\n",
        "        copy.rngs = _folded(copy.root.rngs, time_step)\n",
        "test_time.py::test_multistep_equals_the_loop",
    ),
    Mutant(
        "a step may write to modules that it closes over",
        "linen/_scopes.py",
        "        check_unchanged(outside, self._outside())\n",
        "",
        "test_time.py::test_closing_over_a_stateful_module_raises",
    ),
    Mutant(
        "a state leaks out of a raw transform",
        "linen/_scopes.py",
        "                    check_trace(scope, f\"The collection '{collection}'\")\n",
        "",
        "test_state.py::test_multistep_inside_a_raw_transform_raises_instead_of_leaking",
    ),
    Mutant(
        "MultiStep adds a name to the path",
        "linen/time.py",
        "            bind(module, scope.rewound())",
        "            pass",
        "test_time.py::test_multistep_is_transparent",
    ),
    # Arithmetic.
    Mutant(
        "a mask is multiplied instead of selected",
        "functional/masks.py",
        "    kept = jnp.where(mask, x, jnp.zeros((), x.dtype))",
        "    kept = x * mask.astype(x.dtype)",
        "laws/test_laws.py::test_dropped_nan_and_infinity_give_zero_and_zero_gradient",
    ),
    Mutant(
        "scaling comes before selecting",
        "functional/masks.py",
        "    return (kept.astype(wide) * _scale(p, wide)).astype(out_dtype)",
        "    scaled = x.astype(wide) * _scale(p, wide)\n"
        "    return jnp.where(mask, scaled, jnp.zeros((), wide)).astype(out_dtype)",
        "laws/test_laws.py::test_dropped_nan_and_infinity_give_zero_and_zero_gradient",
    ),
    Mutant(
        "what is kept is scaled by 1 / p",
        "functional/masks.py",
        "np.asarray(1.0 / (1.0 - p) if p < 1 else 0.0, dtype)",
        "np.asarray(1.0 / p, dtype)",
        "laws/test_laws.py::test_values_are_exactly_zero_or_x_over_1_minus_p",
    ),
    Mutant(
        "the scale is rounded to the dtype of the input",
        "functional/masks.py",
        "    wide = out_dtype if jnp.dtype(out_dtype).itemsize >= 4 else jnp.float32",
        "    wide = out_dtype",
        "laws/test_laws.py::test_dtype_in_is_dtype_out",
    ),
    Mutant(
        "a copy of the mask is kept for each step",
        "functional/masks.py",
        "jax.checkpoint(partial(_select_and_scale, p=p), prevent_cse=False)",
        "partial(_select_and_scale, p=p)",
        "functional/test_masks.py::test_apply_mask_keeps_the_mask_and_nothing_else_for_the_"
        "gradient",
    ),
    Mutant(
        "a NaN is a probability",
        "_checks/masks.py",
        "    if not 0.0 <= float(p) <= 1.0:",
        "    if float(p) < 0.0 or float(p) > 1.0:",
        "test_checks.py::test_p_is_a_number_from_0_to_1",
    ),
    Mutant(
        "the variance forgets p",
        "functional/expectation.py",
        "    return keep * mean, float(p) * keep * variance",
        "    return keep * mean, keep * keep * variance",
        "test_dropconnect.py::test_training_averages_to_the_mean_of_inference "
        "functional/test_expectation.py::test_moments_are_those_of_the_masks",
    ),
    Mutant(
        "the deviation of a silent row has an infinite slope",
        "functional/_averages.py",
        "    root = jnp.sqrt(jnp.where(at_point, 1.0, variance))",
        "    root = jnp.sqrt(variance)",
        "test_dropconnect.py::test_a_silent_row_is_finite_with_finite_gradients",
    ),
    Mutant(
        "the last samples of an odd number are left out",
        "functional/_averages.py",
        "    if rest:",
        "    if False:",
        "functional/test_expectation.py::test_the_draws_are_independent_standard_normals",
    ),
    Mutant(
        "the gradient of the kernel is not masked",
        "functional/connections.py",
        "            return total + _masked(words, x.T @ dy).astype(total.dtype), None",
        "            return total + (x.T @ dy).astype(total.dtype), None",
        "functional/test_connections.py::test_forward_and_gradients_equal_an_einsum",
    ),
    Mutant(
        "the accelerators' gradient of the input is not masked",
        "functional/connections.py",
        "    dx = _masked(words[:, None], dy[:, :, None] * kernel[None, None]).sum(3)",
        "    dx = (dy[:, :, None] * kernel[None, None]).sum(3)",
        "functional/test_connections.py::test_the_accelerators_form_equals_the_cpus",
    ),
    # Rows: the step, the example, the input and the output of a mask.
    Mutant(
        "fresh connections: time is reversed",
        "functional/linear.py",
        "y = y.reshape(examples, steps, *tokens, outputs)",
        "y = y.reshape(examples, steps, *tokens, outputs)[:, ::-1]",
        "laws/test_rows.py::test_where_nothing_is_lost_every_way_is_the_dense_layer",
    ),
    Mutant(
        "fresh connections: steps and examples are swapped",
        "functional/linear.py",
        "y = y.reshape(examples, steps, *tokens, outputs)",
        "y = y.reshape(steps, examples, *tokens, outputs).swapaxes(0, 1)",
        "laws/test_rows.py::test_where_nothing_is_lost_every_way_is_the_dense_layer",
    ),
    Mutant(
        "fresh connections: the bias has one mask for all steps",
        "functional/linear.py",
        "bias_mask = bias_mask.reshape(examples, -1, *ones, outputs)",
        "bias_mask = bias_mask.reshape(examples, -1, *ones, outputs)[:, :1]",
        "laws/test_rows.py::test_every_row_has_its_own_mask_and_gradients_meet_the_same",
    ),
    Mutant(
        "fresh connections: the second call meets those of the first",
        "linen/layers/dropconnect.py",
        'draw(fresh_key(self, f"the masks of {self._where()}"))',
        "draw(\n                jax.random.fold_in(\n"
        "                    self.scope.rngs[self.rng_collection].as_jax_rng(), len(name)\n"
        "                )\n            )",
        "laws/test_rows.py::test_a_fresh_layer_that_is_called_twice_loses_other_connections",
    ),
    Mutant(
        "a simulation starts from what init makes of the last step",
        "functional/_sequences.py",
        "jax.lax.dynamic_index_in_dim(x, 0, keepdims=False)",
        "jax.lax.dynamic_index_in_dim(x, -1, keepdims=False)",
        "test_time.py::test_what_init_makes_is_that_of_the_first_step",
    ),
    # Words: the exact probability, none of them twice, every bit of the key.
    Mutant(
        "the number of a block and the example share a counter",
        "functional/_words.py",
        "philox4x32(seed, (zero + jnp.uint32(number), first, zero, index))",
        "philox4x32(seed, (zero, first + jnp.uint32(number), zero, index))",
        "functional/test_words.py::test_packed_bits_are_independent_at_every_distance",
    ),
    Mutant(
        "rows have the same words in pairs",
        "functional/_words.py",
        "threefry2x32_p.bind(seed[0], seed[1], row, column)",
        "threefry2x32_p.bind(seed[0], seed[1], row // jnp.uint32(2), column)",
        "functional/test_words.py::test_no_block_of_words_comes_twice "
        "functional/test_words.py::test_masks_are_independent_at_every_distance",
    ),
    Mutant(
        "a bit of the key is lost",
        "functional/_words.py",
        "    seed = jax.random.bits(key, (2,), jnp.uint32)\n    *rows, length = shape\n",
        "    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):\n"
        "        key = jax.random.wrap_key_data(key)\n"
        "    data = jax.random.key_data(key) & jnp.uint32(2**31 - 1)\n"
        "    key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))\n"
        "    seed = jax.random.bits(key, (2,), jnp.uint32)\n    *rows, length = shape\n",
        "functional/test_words.py::test_every_bit_of_a_key_makes_another_mask",
    ),
    Mutant(
        "one comparison more is won",
        "functional/_words.py",
        "< np.uint32(_numerator(q))",
        "<= np.uint32(_numerator(q))",
        "functional/test_words.py::test_of_all_words_that_are_compared_exactly_the_share_is_"
        "kept",
    ),
    Mutant(
        "a probability is rounded down",
        "functional/_words.py",
        "min(max(round(q * unit), 1), unit - 1)",
        "min(max(int(q * unit), 1), unit - 1)",
        "functional/test_words.py::test_digits_are_those_of_the_nearest_probability",
    ),
    Mutant(
        "p of 1 keeps one bit in 2^23",
        "functional/bits.py",
        "    if p in (0, 1):",
        "    if p == 0:",
        "functional/test_bits.py::test_limits_of_p",
    ),
    # Half precision.
    Mutant(
        "the gradient of the kernel is summed in half precision",
        "functional/connections.py",
        "zero = jnp.zeros(shape, wide_dtype(kernel.dtype))",
        "zero = jnp.zeros(shape, kernel.dtype)",
        "test_precision.py::test_sums_of_products_are_wide",
    ),
    Mutant(
        "products of single inputs are summed in half precision",
        "functional/connections.py",
        "    wide = wide_dtype(kernel.dtype)\n    total",
        "    wide = kernel.dtype\n    total",
        "test_precision.py::test_sums_of_products_are_wide",
    ),
    Mutant(
        "the accelerators' gradient of the kernel is summed in half precision",
        "functional/connections.py",
        "outer.sum((0, 1)).astype(out_dtype)",
        "outer.astype(out_dtype).sum((0, 1), dtype=out_dtype)",
        "test_precision.py::test_sums_of_products_are_wide",
    ),
    Mutant(
        "the gradient of the bias is summed in half precision",
        "functional/linear.py",
        "wide = wide_dtype(bias.dtype)",
        "wide = bias.dtype",
        "test_precision.py::test_no_reduction_is_of_half_precision_on_any_platform",
    ),
    Mutant(
        "scores of half precision are not widened",
        "functional/_uncertainty.py",
        "    scores = scores.astype(jnp.float32)\n",
        "",
        "test_precision.py::test_scores_of_half_precision_are_averaged_wide",
    ),
    Mutant(
        "the dtype that is asked for is not computed in",
        "linen/layers/dropconnect.py",
        "promote_dtype(x_seq, self.kernel, bias, dtype=self.dtype)",
        "promote_dtype(x_seq, self.kernel, bias, dtype=None)",
        "test_fields.py::test_dtype_is_that_of_the_computation",
    ),
    # Rates that are arrays, shared axes, spikes that are not scaled.
    Mutant(
        "each element of an array is rounded up",
        "functional/_words.py",
        "jnp.clip(jnp.round(rates * unit), 1, unit - 1)",
        "jnp.clip(jnp.ceil(rates * unit), 1, unit - 1)",
        "test_rates.py::test_an_array_has_the_distribution_of_each_of_its_numbers",
    ),
    Mutant(
        "a rate of 1 keeps what a rate below it keeps",
        "functional/_words.py",
        "    dropped = jnp.where(rates < 1, jnp.where(rates > 0, dropped, 0), unit)\n",
        "",
        "test_rates.py::test_an_array_has_the_distribution_of_each_of_its_numbers",
    ),
    Mutant(
        "a gradient reaches p",
        "functional/_rates.py",
        "lax.stop_gradient(jnp.asarray(p))",
        "jnp.asarray(p)",
        "test_rates.py::test_no_gradient_reaches_p_and_all_are_finite",
    ),
    Mutant(
        "rates out of range are taken as they are",
        "functional/_rates.py",
        "jnp.clip(rates, 0, 1), rates)",
        "rates, rates)",
        "test_rates.py::test_traced_rates_out_of_range_are_clipped_and_a_nan_is_one",
    ),
    Mutant(
        "nobody sees that a rate is out of range",
        "functional/_rates.py",
        "return jnp.where(jnp.isnan(nan_if_out_of_range), jnp.clip(rates, 0, 1), rates)",
        "return jnp.clip(rates, 0, 1)",
        "test_rates.py::test_checkify_finds_what_is_out_of_range",
    ),
    Mutant(
        "a rate of 1 has an infinite scale",
        "functional/_rates.py",
        "    return jnp.where(none, 0, 1 / jnp.where(none, 1, q)).astype(dtype)",
        "    return (1 / q).astype(dtype)",
        "test_rates.py::test_one_program_for_all_rates",
    ),
    Mutant(
        "an array is taken for the number 0",
        "functional/_rates.py",
        "    return not is_array(p) and bool(p == 0)",
        "    return bool(jnp.all(p == 0))",
        "test_rates.py::test_an_array_of_0_is_drawn_with_and_stored",
    ),
    Mutant(
        "rates that do not fit are broadcast with the mask",
        "linen/layers/_held_dropout.py",
        "        _mask_checks.check_rates_fit(self.p, shape)\n",
        "",
        "test_rates.py::test_rates_that_do_not_fit_the_mask_raise",
    ),
    Mutant(
        "a stored mask has the rates of the layer that reads it",
        "functional/masks.py",
        "        return _apply_each(x, mask, lax.stop_gradient(mask_p))\n",
        "        return _apply_each(x, mask, as_rates(p))\n",
        "test_rates.py::test_a_mask_keeps_its_rates_when_p_changes_on_the_way",
    ),
    Mutant(
        "a known array is not checked",
        "_checks/masks.py",
        "    if out.size:\n",
        "    if False:\n",
        "test_rates.py::test_a_known_array_is_checked_as_a_number_is",
    ),
    Mutant(
        "nn.jit fails in its own words",
        "linen/_surroundings.py",
        '        if name == "__fn_or_cls__":\n',
        "        if False:\n",
        "test_rates.py::test_nn_jit_of_a_layer_that_has_an_array_says_what_to_type",
    ),
    Mutant(
        "axes from the back are not shared",
        "_checks/layers.py",
        "    shared = tuple(axis % ndim for axis in broadcast_dims)\n",
        "    shared = tuple(broadcast_dims)\n",
        "test_shared_axes.py::test_axes_are_those_of_one_step_in_either_mode",
    ),
    Mutant(
        "an axis may be there twice",
        "_checks/layers.py",
        "    if len(set(shared)) < len(shared):\n",
        "    if False:\n",
        "test_shared_axes.py::test_each_axis_is_one_of_a_step_and_there_once",
    ),
    Mutant(
        "features of a mask that all share are restarted as examples",
        "linen/reset.py",
        '        if getattr(path[-1] if path else None, "key", None) in MASK_NAMES:\n',
        "        if False:\n",
        "test_shared_axes.py::test_rows_of_a_shared_mask_raise_and_the_error_says_what_to_type",
    ),
    Mutant(
        "unscaled spikes are scaled by the call that draws",
        "functional/masks.py",
        "    p = float(p) if scale else 0.0\n",
        "    p = float(p)\n",
        "test_shared_axes.py::test_unscaled_spikes_stay_0_and_1",
    ),
    Mutant(
        "unscaled spikes are scaled by the calls that read",
        "linen/layers/_held_dropout.py",
        "        if mask_p is None or not self.scale:",
        "        if mask_p is None:",
        "test_shared_axes.py::test_a_stored_mask_is_not_scaled_either_and_each_layer_scales_as_"
        "it_says",
    ),
    # Any module with lost connections, and tokens.
    Mutant(
        "a wrapped module is not scaled",
        "functional/parameters.py",
        "        return apply_mask(parameter, mask, p)",
        "        return parameter * mask",
        "test_wrapper.py::test_the_mean_over_masks_is_the_module_in_inference",
    ),
    Mutant(
        "a wrapped module has the scale of the wrapper that reads its masks",
        "linen/layers/wrapper.py",
        "        return lose_connections(parameter, words, mask_p, self.p)",
        "        return lose_connections(parameter, words, None, self.p)",
        "test_wrapper.py::test_a_simulation_keeps_the_masks_and_the_p_that_it_started_with",
    ),
    Mutant(
        "a wrapped module keeps what it writes to itself",
        "linen/_parameters.py",
        "        _write(top, copy)",
        "        pass",
        "test_wrapper.py::test_everything_else_is_as_in_the_module_by_itself",
    ),
    Mutant(
        "a wrapped module writes back what it only reads",
        "linen/_parameters.py",
        "            if name not in before or not _same(before[name], value):",
        "            if True:",
        "test_wrapper.py::test_a_mask_born_inside_a_raw_transform_raises_and_a_stored_one_is_"
        "read",
    ),
    Mutant(
        "a wrapper adds a name to the path",
        "linen/layers/wrapper.py",
        "            bind(module, stand_in(scope.rewound(), scope))",
        "            pass",
        "test_wrapper.py::test_a_module_runs_with_its_kernels_masked_and_gradients_reach_"
        "those_that_are_kept",
    ),
    Mutant(
        "masked kernels are taken for those of a stack",
        "linen/_surroundings.py",
        "    while _ORIGINAL in vars(root):",
        "    while False:",
        "test_wrapper.py::test_a_dropout_inside_of_a_wrapped_cell_sees_the_scan_around_it",
    ),
    Mutant(
        "Monte-Carlo leaves out wrapped modules",
        "linen/uncertainty.py",
        "(HeldDropout, DropConnect, DropConnectLinear)",
        "(HeldDropout, DropConnectLinear)",
        "test_wrapper.py::test_resets_and_monte_carlo_know_the_masks_and_no_leaf_of_a_neuron",
    ),
    Mutant(
        "a parameter may lose connections twice",
        "linen/_parameters.py",
        "flags={**top.flags, LOST: top.flags.get(LOST, frozenset()) | lost},",
        "flags=top.flags,",
        "test_wrapper.py::test_a_parameter_loses_connections_once",
    ),
    Mutant(
        "two wrappers around one instance pass",
        "linen/layers/wrapper.py",
        "            if module is self.module and other != where:",
        "            if False:",
        "test_wrapper.py::test_two_wrappers_around_one_instance_raise",
    ),
    Mutant(
        "the flag of a call is kept from the wrapped module",
        "linen/layers/wrapper.py",
        '            kwargs["deterministic"] = deterministic',
        "            pass",
        "test_wrapper.py::test_deterministic_is_handed_on_to_a_module_whose_call_names_it",
    ),
    Mutant(
        "an inference of tokens draws for each of them",
        "functional/_tokens.py",
        "    rows = (mean.shape[0], -1, mean.shape[-1])",
        "    rows = (-1, mean.shape[1], mean.shape[-1])",
        "test_tokens.py::test_in_inference_tokens_are_as_examples_of_their_own",
    ),
    Mutant(
        "a whole sequence is taken for tokens in silence",
        "linen/layers/dropconnect.py",
        "        if len(shape) > 2 and not stored:",
        "        if False:",
        "test_tokens.py::test_a_whole_sequence_that_is_taken_for_tokens_raises_where_it_can_"
        "be_seen",
    ),
    # Leaves, streams, meshes.
    Mutant(
        "rows of another dtype are taken",
        "_checks/rows.py",
        "    if old.shape != new.shape or old.dtype != new.dtype:",
        "    if old.shape != new.shape:",
        "laws/test_leaves.py::test_rows_of_another_dtype_or_shape_are_refused_and_named",
    ),
    Mutant(
        "a scalar leaf of a sampled neuron has no place for its samples",
        "linen/_simulation.py",
        "    return min(jnp.ndim(leaf), 1)",
        "    return 1",
        "laws/test_leaves.py::test_sampled_neurons_keep_the_leaves_of_every_rank_and_dtype",
    ),
    Mutant(
        "sampled neurons start from rest, whatever state is found",
        "linen/_simulation.py",
        "    first = made_by_init(init, given, pure_step.name) | given\n",
        "    first = made_by_init(init, given, pure_step.name)\n",
        "laws/test_leaves.py::test_samples_start_from_the_state_that_is_found",
    ),
    Mutant(
        "the noise of sampled neurons repeats from step to step",
        "linen/_simulation.py",
        "folds = time_step * samples + jnp.arange(samples)",
        "folds = time_step + jnp.arange(samples)",
        "test_fields.py::test_no_two_samples_or_steps_of_a_random_neuron_have_the_same_noise",
    ),
    Mutant(
        "a sample is folded into one stream only",
        "linen/uncertainty.py",
        "keys = jax.tree.map(lambda key: jax.random.fold_in(key, number), streams)",
        "keys = streams | {\n"
        "            name: jax.random.fold_in(streams[name], number)\n"
        "            for name in {'dropout', 'monte_carlo'} & streams.keys()\n"
        "        }",
        "laws/test_streams.py::test_monte_carlo_folds_the_sample_into_every_stream",
    ),
    Mutant(
        "held masks are drawn from the stream dropout, whatever the field says",
        "linen/_held.py",
        "    key, path = key_and_path(module.scope, module.rng_collection)",
        "    stream = 'dropout' if module.has_rng('dropout') else module.rng_collection\n"
        "    key, path = key_and_path(module.scope, stream)",
        "laws/test_streams.py::test_each_layer_draws_from_its_own_stream_and_from_no_other",
    ),
    Mutant(
        "masks of connections are split as features are",
        "functional/_sharding.py",
        "    return sharding.update(spec=PartitionSpec(*sharding.spec[:1]))",
        "    return sharding",
        "test_meshes.py::test_connections_outside_of_jit_are_the_same",
    ),
    Mutant(
        "a batch is split over one axis of the mesh only",
        "functional/_sharding.py",
        "    named = named if isinstance(named, tuple) else (named,)",
        "    named = named[:1] if isinstance(named, tuple) else (named,)",
        "test_meshes.py::test_connections_of_a_batch_over_two_axes_exchange_nothing_but_"
        "gradients",
    ),
    Mutant(
        "a bias loses connections twice",
        "linen/layers/dropconnect.py",
        'for name in ("kernel", "bias")]',
        'for name in ("kernel",)]',
        "test_wrapper.py::test_no_parameter_of_lost_connections_loses_them_again",
    ),
    Mutant(
        "samples share the masks of another collection",
        "linen/uncertainty.py",
        'if path[0] != "params" and path[-1] in MASK_NAMES',
        'if path[0] == "state" and path[-1] in MASK_NAMES',
        "test_collections.py::test_masks_that_are_there_already_are_no_samples",
    ),
    Mutant(
        "copies of neurons that can not be kept start anew at each step",
        "linen/layers/_activation.py",
        "if not whole or layer.is_mutable_collection(",
        "if layer.is_mutable_collection(",
        "test_dropconnect.py::test_one_step_of_neurons_that_can_not_be_kept_raises_in_inference",
    ),
    Mutant(
        "a last chunk that overlaps counts twice",
        "functional/_chunks.py",
        '"nsi,nso->nio",\n            examples.read_once(',
        '"nsi,nso->nio",\n            examples.read(',
        "functional/test_chunks.py::test_products_are_those_of_an_einsum",
    ),
    Mutant(
        "what a wrapper holds notes nothing beside it",
        "linen/layers/wrapper.py",
        "bind(module, stand_in(scope.rewound(), scope))",
        "bind(module, scope.rewound())",
        "test_whole_sequences.py::test_it_is_noticed_inside_of_two_wrappers_too",
    ),
    Mutant(
        "a wrapper hands its field to the module",
        "linen/layers/wrapper.py",
        """        if deterministic is not None and _names_deterministic(self.module):
            kwargs["deterministic"] = deterministic
""",
        """        if _names_deterministic(self.module):
            kwargs["deterministic"] = inference
""",
        "test_wrapper.py::test_the_field_of_the_wrapper_is_not_handed_to_the_module",
    ),
    Mutant(
        "neurons see one step of a sequence where the mode is that of the call",
        "linen/layers/_activation.py",
        "if layer.is_initializing() or not whole:",
        'if layer.is_initializing() or layer.step_mode == "s":',
        "test_dropconnect.py::test_neurons_are_stepped_over_a_sequence_in_either_mode_of_the_layer",
    ),
    # NNX.
    Mutant(
        "an NNX layer's mask does not depend on its path",
        "nnx/_engine.py",
        "wish.make(layer, partial(mask_key, key, names))",
        "wish.make(layer, partial(mask_key, key, ()))",
        "nnx/test_rules.py::test_rule_8_every_way_gives_the_masks_of_linen",
    ),
    Mutant(
        "an item of a list in NNX has a name of its own",
        "nnx/_held.py",
        'names[-1] = f"{names[-1]}_{part}"',
        "names.append(str(part))",
        "nnx/test_equal.py::test_paths_are_written_as_linen_writes_them",
    ),
    Mutant(
        "a mask held in NNX has the scale of another p",
        "nnx/_dropout.py",
        'apply_stored_mask(x, found["mask"], found["mask_p"], self.p)',
        'apply_mask(x, found["mask"], self.p)',
        "nnx/test_rules.py::test_rule_7_a_simulation_keeps_the_rate_that_it_started_with",
    ),
    Mutant(
        "a simulation in NNX replaces masks that are held",
        "nnx/_engine.py",
        '_nnx_checks.refuse_held("/".join(map(str, path)) or type(layer).__name__)',
        "pass",
        "nnx/test_traps.py::test_what_init_masks_made_stays_until_it_is_reset",
    ),
    Mutant(
        "samples in NNX are told to drop nothing",
        "nnx/uncertainty.py",
        "layer._always_drops = True",
        "layer._always_drops = False",
        "nnx/test_life.py::test_monte_carlo_drops_whatever_the_call_says_and_nothing_else",
    ),
    Mutant(
        "samples in NNX lose the same fresh connections",
        "nnx/uncertainty.py",
        "jax.random.fold_in(key, number), keys))",
        "key, keys))",
        "nnx/test_life.py::test_monte_carlo_drops_whatever_the_call_says_and_nothing_else",
    ),
    Mutant(
        "samples in NNX run as in training",
        "nnx/uncertainty.py",
        "        copy.eval()\n",
        "",
        "nnx/test_life.py::test_monte_carlo_drops_whatever_the_call_says_and_nothing_else",
    ),
    Mutant(
        "a simulation in NNX leaves Variables as they were",
        "nnx/_engine.py",
        "    pure.write(values)\n",
        "",
        "nnx/test_rules.py::test_rule_10_what_is_no_parameter_and_no_mask_is_carried_and_updated",
    ),
    Mutant(
        "masks in NNX do not lie where the input does",
        "nnx/_engine.py",
        "    y, after = call() if eager else jax.eval_shape(call)",
        "    y, after = jax.eval_shape(call)",
        "nnx/test_devices.py::test_masks_are_those_of_one_device_and_lie_where_the_input_does",
    ),
    Mutant(
        "rows in NNX restart where they are not done",
        "nnx/masks.py",
        "(old.ndim - 1)), new, old)",
        "(old.ndim - 1)), old, new)",
        "nnx/test_rules.py::test_rule_3_rows_restart_alone",
    ),
    Mutant(
        "copies of neurons in NNX share their keys",
        "nnx/_copies.py",
        "return jax.random.split(value, samples)",
        "return jnp.stack([value] * samples)",
        "nnx/test_dropconnect.py::test_neurons_with_a_stream_of_their_own_are_copied_with_other_keys",
    ),
    Mutant(
        "steps in NNX do not say that they are single steps",
        "nnx/_calls.py",
        '{"_one_step": one_step}',
        '{"_one_step": False}',
        "nnx/test_checks.py::test_a_layer_in_mode_m_raises_inside_of_a_simulation_of_steps",
    ),
    Mutant(
        "each run of a carried layer has the same mask",
        "nnx/spyx.py",
        'return fresh_key(self.layer, None, "the mask")',
        "return jax.random.key(0)",
        "nnx/test_life.py::test_a_carried_layer_holds_its_mask_in_a_raw_scan_and_has_another_in_the_next",
    ),
    Mutant(
        "one NNX layer may stand for many",
        "nnx/_held.py",
        "if _stream_axes(layer) != self._axes:",
        "if False:",
        "nnx/test_transforms.py::test_layers_that_nnx_maps_over_inside_of_the_model_are_told_apart",
    ),
    Mutant(
        "what an NNX layer holds outlives its simulation",
        "nnx/_calls.py",
        "nnx.data(None) if value is None else value)",
        "getattr(layer, name))",
        "nnx/test_equal.py::test_simulate_gives_the_masks_outputs_and_gradients_of_linen",
    ),
    Mutant(
        "a mask of another batch is taken in NNX",
        "nnx/_dropout.py",
        '_nnx_checks.check_held_mask(name, "mask", found["mask"], shape, jnp.bool_)',
        "pass",
        "nnx/test_rules.py::test_rule_7_a_mask_of_another_batch_raises_and_names_both_shapes",
    ),
    Mutant(
        "an NNX layer keeps p of the kind that it was made with",
        "nnx/_dropout.py",
        '        if name == "p":\n',
        "        if False:\n",
        "nnx/test_rates.py::test_another_p_of_another_kind_is_set_by_assignment",
    ),
    Mutant(
        "tokens in NNX meet normals of other examples",
        "nnx/_copies.py",
        "shape = (samples, *(1,) * (mean.ndim - 1), mean.shape[-1])",
        "shape = (samples, 1, mean.shape[-1])",
        "nnx/test_tokens.py::test_in_inference_tokens_are_as_examples_of_their_own",
    ),
    Mutant(
        "copies of neurons in NNX do not go on from step to step",
        "nnx/_activation.py",
        "        layer.samples.set_value(copies)\n",
        "        pass\n",
        "nnx/test_dropconnect.py::test_copies_live_as_long_as_the_simulation_and_rows_of_them_restart",
    ),
    Mutant(
        "copies of neurons in NNX do not go on in a sequence in parts",
        "nnx/_activation.py",
        "    if layer.samples is not None:\n",
        '    if layer.samples is not None and layer.step_mode == "s":\n',
        "nnx/test_dropconnect.py::test_copies_go_on_from_one_part_of_a_sequence_to_the_next",
    ),
    Mutant(
        "rows in NNX restart what is of no example",
        "nnx/masks.py",
        "    if old.ndim < 2 or len(old) != len(done):\n        return old\n",
        "",
        "nnx/test_dropconnect.py::test_what_is_of_no_example_is_left_alone_where_rows_of_copies_restart",
    ),
    Mutant(
        "what is not scaled is scaled where NNX holds no mask",
        "nnx/_dropout.py",
        'return apply_mask(x, made["mask"], self.p, scale=self.scale)',
        'return apply_mask(x, made["mask"], self.p)',
        "nnx/test_rules.py::test_rule_6_without_a_scale_nothing_is_scaled_with_and_without_a_held_mask",
    ),
    Mutant(
        "a layer of NNX draws from a stream of another name",
        "nnx/_held.py",
        "source = source[layer.rng_collection]",
        'source = source["dropout"]',
        "nnx/test_rules.py::test_rule_6_a_layer_draws_from_the_stream_of_its_name",
    ),
    Mutant(
        "a membrane in NNX that starts as a number starts at 0",
        "nnx/_engine.py",
        "return jnp.broadcast_to(old, new.shape)",
        "return jnp.zeros(new.shape, jnp.result_type(old))",
        "nnx/test_stale.py::test_a_membrane_that_starts_as_a_number_starts_at_it",
    ),
]


def copy_of_the_project(folder: Path, root: Path = ROOT) -> Path:
    """Copies what the tests need."""
    for name in COPIED:
        source = root / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder


def mutate(folder: Path, mutant: Mutant) -> None:
    """Puts a defect into a copy, or raises where it does not apply."""
    file = folder / "snn_dropout" / mutant.file
    text = file.read_text()
    if (found := text.count(mutant.old)) != 1:
        raise ValueError(
            f"mutant '{mutant.name}': its text occurs {found} times in {mutant.file}, not "
            f"once; adapt it in {Path(__file__).name}"
        )
    file.write_text(text.replace(mutant.old, mutant.new))


def run_tests(
    folder: Path,
    tests: Sequence[str],
    *options: str,
    timeout: float | None = None,
    settings: Mapping[str, str] | None = None,
) -> tuple[int | None, str]:
    """Runs tests in a copy.

    Args:
      folder: the copy.
      tests: what pytest is told to run.
      *options: further options of pytest.
      timeout: after how many seconds to give up.
      settings: further variables of the environment.

    Returns:
      The exit status of pytest, None where the time was up, and what it printed.
    """
    usual = ["-o", "addopts=", "-q", "-p", "no:cacheprovider"]
    environment = {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        # A mutant compiles little that is new.
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "programs"),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *usual, *options, *tests],
        cwd=folder,
        env={**os.environ, **environment, **(settings or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            output, _ = run.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # with all that it has started
            return None, run.communicate()[0]
    return run.returncode, output


def paths(tests: str) -> list[str]:
    """Returns tests as pytest is told of them."""
    return [f"tests/{test}" for test in tests.split()]


def verdict(mutant: Mutant, *depth: str) -> bool:
    """Tells whether the tests kill a mutant at a depth, and prints which."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of_the_project(Path(temporary))
        mutate(folder, mutant)
        status, output = run_tests(folder, paths(mutant.tests), "-x", *depth)
    if status not in (PASSED, FAILED):
        raise RuntimeError(
            f"mutant '{mutant.name}': pytest gave no verdict but status {status}\n{output}"
        )
    failed = [line for line in output.splitlines() if line.startswith("FAILED")]
    killer = failed[0].split(" - ")[0].removeprefix("FAILED ") if failed else ""
    word = "killed  " if status == FAILED else "SURVIVED"
    print(f"{word} {mutant.file}: {mutant.name}  {killer}", flush=True)
    return status == FAILED


def main() -> int:
    """Runs all mutants, or those whose name has the given words in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only mutants with these in their names")
    parser.add_argument("--exhaustive", action="store_true", help="at that depth")
    parser.add_argument("--processes", type=int, default=2, help="tests at a time")
    arguments = parser.parse_args()
    depth = ["--exhaustive"] if arguments.exhaustive else []
    words = arguments.words
    chosen = [m for m in MUTANTS if all(word in m.name for word in words)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = copy_of_the_project(Path(temporary))
        tests = sorted({test for mutant in chosen for test in mutant.tests.split()})
        together = ("-x", "-n", str(arguments.processes), *depth)
        status, output = run_tests(folder, paths(" ".join(tests)), *together)
    if status != PASSED:
        raise RuntimeError(
            f"the tests have to pass on the library as it is, but gave {status}\n{output}"
        )
    with ThreadPoolExecutor(arguments.processes) as pool:
        verdicts = list(pool.map(lambda mutant: verdict(mutant, *depth), chosen))
    print(f"{sum(verdicts)} of {len(verdicts)} mutants killed")
    return 0 if all(verdicts) and verdicts else 1


if __name__ == "__main__":
    sys.exit(main())
