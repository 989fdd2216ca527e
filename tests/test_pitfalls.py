"""What goes wrong where gradients are collected before a training, each with the tests that show it does not here."""

import ast
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXACT = "exactness::training_is_bit_identical"
NOTICED = "exactness::the_comparison_notices_a_trace"
KINDS = "any_module::training_is_bit_identical_with_and_without_collecting"

PITFALLS = {
    1: ("`self.log` is refused in a hook", ["collect::logging_and_hooks_of_a_lightning_module", EXACT]),
    2: ("what a step logs gets into the epoch's metrics", [EXACT, NOTICED]),
    3: (
        "a failing step leaves the Trainer inside of a hook",
        ["interruptions::a_phase_cut_off_at_any_line_leaves_no_trace"],
    ),
    4: ("a step sends something straight to a logger", [EXACT]),
    5: ("gradients set off the hooks around backward", [EXACT, "collect::logging_and_hooks_of_a_lightning_module"]),
    6: (
        "a borrowed fit loop is not put back as a whole",
        [EXACT, "interruptions::a_run_cut_off_in_the_phase_can_be_started_again"],
    ),
    7: ("a forward pass changes statistics, metrics, queues and attributes", [EXACT, KINDS]),
    8: (
        "old weight norm cannot be copied",
        ["clone::results_that_hang_on_a_module_are_copied_as_values", "clone::what_cannot_be_copied_is_named", KINDS],
    ),
    9: (
        "the copy of a compiled module runs the original",
        [
            "loss::a_copy_of_a_compiled_module_runs_its_own_step",
            "trainer_features::a_compiled_module_has_the_signature_of_the_plain_one",
        ],
    ),
    10: (
        "a compiled step that logs ends by itself",
        ["trainer_features::a_compiled_step_that_logs_ends_as_it_does_without_us"],
    ),
    11: (
        "an optimizer trains tensors that were replaced",
        ["callbacks::the_best_source_is_loaded_before_the_first_step_and_then_trained"],
    ),
    12: (
        "a sweep of resets misses weights",
        [
            "sweep::parameters_that_nothing_resets_are_named_with_the_ways_out",
            "resets::parts_start_as_their_constructors_start_them",
            "rebuild::constructors_that_need_nothing_are_run",
        ],
    ),
    13: (
        "frozen or unused parameters have no gradient",
        [
            "collect::a_frozen_part_of_the_encoder_keeps_its_values",
            "collect::a_unit_that_the_loss_does_not_reach_has_no_update",
            "trainer_features::a_backbone_that_is_thawed_later_is_collected_and_selected_as_a_whole",
        ],
    ),
    14: (
        "tied weights have two names and one memory",
        ["sweep::tied_weights_are_one_unit_and_stay_tied", "rebuild::tied_weights_stay_tied_through_a_rebuild"],
    ),
    15: (
        "scaled losses overflow or underflow",
        ["collect::other_precisions_collect_in_float32", "collect::a_loss_that_is_not_finite_names_the_restart", EXACT],
    ),
    16: ("half precision changes default types around a step", ["collect::other_precisions_collect_in_float32", EXACT]),
    17: ("accumulation divides the loss", [EXACT, "callbacks::the_signature_is_that_of_plain_pytorch"]),
    18: ("training mode is set where the user has set evaluation", ["collect::modes_of_training", EXACT]),
    19: (
        "training steps differ in arguments and results",
        [
            "loss::training_steps_of_all_shapes_give_the_loss_that_lightning_takes",
            "loss::what_lightning_refuses_is_refused_with_the_cure",
        ],
    ),
    20: (
        "manual optimization moves weights",
        [
            "loss::without_a_usable_step_there_is_an_error_with_the_cure",
            "callbacks::manual_optimization_works_with_a_loss",
        ],
    ),
    21: ("a step needs what a later hook makes", ["loss::a_step_that_misses_what_a_later_hook_makes_says_so"]),
    22: (
        "adversarial and contrastive steps are not one loss",
        [KINDS, "loss::losses_of_all_shapes_give_the_values_of_a_loop_by_hand_on_the_copy"],
    ),
    23: (
        "reading a loader draws from the global random state",
        ["samples::reading_moves_neither_sampler_nor_generator_nor_global_state", EXACT],
    ),
    24: (
        "random states are not put back after an error",
        ["isolation::global_randomness_is_put_back", "interruptions::a_phase_cut_off_at_any_line_leaves_no_trace"],
    ),
    25: ("training begins in the middle of an iterator", [EXACT, NOTICED]),
    26: ("the fit loop's data were set up earlier", [EXACT]),
    27: (
        "generators of loaders and samplers advance",
        ["isolation::a_borrowed_loader_reads_on_as_if_it_had_not_been_read", EXACT],
    ),
    28: ("persistent workers hand out one iterator", ["isolation::a_persistent_iterator_is_laid_aside", EXACT]),
    29: (
        "samples of a stream are gone once read",
        ["streams::training_sees_the_same_stream", "streams::what_has_no_copy_is_refused_unread"],
    ),
    30: (
        "the number of workers changes what is read",
        ["streams::the_number_of_workers_changes_nothing", "loaders::how_a_loader_loads_changes_nothing"],
    ),
    31: (
        "loaders are limited, endless or too short",
        [
            "samples::a_limit_counts_batches",
            "streams::an_endless_stream_needs_a_ladder_or_a_limit",
            "streams::a_stream_shorter_than_the_warm_up_is_gone_through_again",
        ],
    ),
    32: (
        "several loaders are combined in several ways",
        [
            "containers::training_is_bit_identical_and_two_calls_give_the_same_signature",
            "containers::loaders_side_by_side_give_batches_in_their_structure",
        ],
    ),
    33: ("processes drift apart without a word", ["ddp::training_of_two_processes_is_bit_identical"]),
    34: (
        "processes restart differently",
        ["ddp::two_processes_collect_the_signatures_of_one", "draws::a_unit_knows_neither_order_nor_neighbours"],
    ),
    35: (
        "processes with fewer batches are waited for",
        [
            "ddp::a_step_that_waits_for_other_processes_is_refused",
            "distributed::streams_of_uneven_length_agree_on_the_shorter",
            "distributed::synchronised_batch_norm_acts_alone_on_copies",
        ],
    ),
    36: (
        "one process waits for what the others never do",
        [
            "ddp::what_fails_on_one_process_ends_both_before_training",
            "distributed::a_process_that_was_killed_is_not_waited_for",
        ],
    ),
    37: (
        "ranking takes longer than the others wait",
        ["ddp::two_processes_load_the_same_source_which_only_the_first_can_read"],
    ),
    38: (
        "parameters lie in pieces",
        [
            "sharding::an_encoder_is_loaded_into_shards_in_place",
            "sharding::a_sharded_module_is_refused_before_any_work",
            "sharding::callbacks_refuse_strategies_that_shard_or_are_unknown_with_the_way_out",
        ],
    ),
    39: (
        "the memory of the device is not enough for one more model",
        ["memory::the_peak_is_one_copy_one_state_and_the_signature"],
    ),
    40: (
        "a run that goes on is started over",
        [
            "callbacks::a_resumed_run_keeps_its_weights",
            "trainer_features::a_selection_is_made_once_over_requeued_jobs",
            "trainer_features::a_checkpoint_of_no_steps_does_not_keep_from_collecting_but_from_selecting",
        ],
    ),
    41: (
        "other callbacks have copied or tuned the weights before",
        [
            "trainer_features::callbacks_that_keep_a_copy_of_the_weights_are_refused_beside_a_selection",
            "trainer_features::a_tuned_rate_brings_a_warning_and_the_selection_is_made_all_the_same",
            "trainer_features::a_callback_of_the_module_is_one_like_any_other",
        ],
    ),
    42: (
        "checkpoints run code when they are loaded",
        [
            "artifact::pickled_code_is_never_run",
            "callbacks::checkpoints_load_without_pickle_and_count_only_training_time",
        ],
    ),
    43: (
        "heads differ in their number of classes",
        [
            "load::another_head_and_extra_units_are_skipped_with_their_reasons",
            "any_module::signatures_of_other_data_and_another_head_are_comparable",
        ],
    ),
    44: (
        "Ctrl-C comes in the middle",
        [
            "interruptions::a_phase_cut_off_at_any_line_leaves_no_trace",
            "collect::module_and_random_state_are_left_alone",
        ],
    ),
    45: ("the caller has switched gradients off", ["collect::callers_without_gradients_get_the_same"]),
    46: ("every batch prints a line", ["trainer_features::a_phase_says_one_thing"]),
}


@cache
def names_in(file):
    """Names of the tests in a file that are not switched off."""
    tree = ast.parse((HERE / f"test_{file}.py").read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {
        node.name
        for node in found
        if not {"skip", "xfail"}
        & {part.attr for mark in node.decorator_list for part in ast.walk(mark) if isinstance(part, ast.Attribute)}
    }


@pytest.mark.parametrize("number", PITFALLS)
def test_every_pitfall_has_its_tests(number):
    _, tests = PITFALLS[number]
    assert tests
    for test in tests:
        file, name = test.split("::")
        assert f"test_{name}" in names_in(file), test


def test_all_pitfalls_are_listed():
    assert list(PITFALLS) == list(range(1, 47))
