"""Tables of defects that others had, and the tests that they do not come back here.

The numbers are those of the survey with which this project began: 6a for the original, 6b for hivemind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent
_HERE = "test_defects_original.py"
_PEERS = "test_defects_hivemind.py"


@dataclass(frozen=True)
class Defect:
    """What was wrong, and where it is tested: "test_file.py::test_name", or "cpp/test_file.cpp::Suite.Name".

    absent: why there is nothing to test, where the part does not exist.
    """

    text: str
    tests: tuple[str, ...] = ()
    absent: str = ""


def check_table(table: dict[int, Defect], numbers: Iterable[int]) -> None:
    """Every number is there, and every test named exists."""
    assert sorted(table) == sorted(numbers)
    for number, defect in table.items():
        assert bool(defect.tests) != bool(defect.absent), f"{number}: a test, or the reason why there is none"
        missing = [test for test in defect.tests if test.split("::")[1] not in _tests_in(test.split("::")[0])]
        assert not missing, f"{number}: {missing}"


@cache
def _tests_in(name: str) -> frozenset[str]:
    text = (TESTS / name).read_text(encoding="utf-8")
    if name.endswith(".cpp"):
        return frozenset(f"{suite}.{test}" for suite, test in re.findall(r"TEST(?:_[FP])?\((\w+),\s*(\w+)\)", text))
    return frozenset(re.findall(r"^ *def (test_\w+)\(", text, re.MULTILINE))


# The original Learning@home: Ryabinin and Gusev, "Towards Crowdsourced Training of Large Neural Networks using
# Decentralized Mixture-of-Experts" (NeurIPS 2020), and its code.
ORIGINAL = {
    1: Defect(
        "the newest request was computed first",
        (
            f"{_HERE}::test_6a01_the_oldest_request_is_computed_first",
            "cpp/test_batching.cpp::BatchingTest.OldestPoolGoesFirst",
        ),
    ),
    2: Defect(
        "all experts of one sample dead: ValueError, the whole step was lost",
        (f"{_HERE}::test_6a02_all_experts_of_one_sample_dead_does_not_kill_the_step",),
    ),
    3: Defect(
        "fewer live prefixes than k_best: TypeError",
        ("test_gating.py::test_gate_equals_a_dense_mixture", "test_gating.py::test_more_choices_than_experts"),
    ),
    4: Defect(
        "a call for each sample and expert, a question for the schema in each step",
        (
            "test_gating.py::test_one_call_per_expert_and_direction",
            f"{_HERE}::test_6a04_a_schema_is_asked_for_once",
        ),
    ),
    5: Defect(
        "backward calls one after the other, and any that failed raised",
        (
            f"{_HERE}::test_6a05_backward_calls_run_side_by_side",
            "test_gating.py::test_a_failing_backward_gives_zero_gradients_and_is_counted",
        ),
    ),
    6: Defect(
        "no error replies: an unknown uid, a bad batch or a wrong shape killed or froze somebody",
        (
            "test_failures.py::test_unknown_uid_is_named_and_the_server_serves_on",
            "test_failures.py::test_an_expert_that_raises_tells_its_caller_and_serves_on",
            "test_failures.py::test_a_bad_request_never_harms_its_neighbours",
        ),
    ),
    7: Defect("pickle in every record and every call", ("test_house.py::test_no_file_unpickles",)),
    8: Defect("heartbeats in naive local time", ("test_network.py::test_time_zones_do_not_matter",)),
    9: Defect(
        "a segment of shared memory for each batch size, for ever",
        (f"{_HERE}::test_6a09_batches_of_many_sizes_leave_no_shared_memory",),
    ),
    10: Defect(
        "lookups one at a time and never cached",
        (f"{_HERE}::test_6a10_lookups_are_answered_from_the_map", "test_network.py::test_lookups_from_many_threads"),
    ),
    11: Defect(
        "four threads for each call, and an exception in the thread of a straggler",
        (f"{_HERE}::test_6a11_calls_take_no_threads_and_stragglers_disturb_nobody",),
    ),
    12: Defect(
        "many threads wrote to one pipe without a lock",
        (
            "test_gate_stats.py::test_threads_share_a_gate",
            "test_gate_stats.py::test_backward_passes_of_threads_all_arrive",
        ),
    ),
    13: Defect(
        "an assertion failed when fewer experts than k_min were found",
        (
            f"{_HERE}::test_6a13_fewer_experts_than_k_min_are_enough",
            "cpp/test_call_group.cpp::QuorumTest.FewerExpertsThanKMinAreStillWaitedFor",
        ),
    ),
    14: Defect(
        "no checkpoints, no taking over, no compression, no authentication, no load balancing",
        (
            "test_replicas.py::test_one_holder_is_called_and_the_other_takes_over",
            "test_checkpoints.py::test_resumed_training_equals_uninterrupted_training",
            "test_codecs.py::test_bytes_on_the_wire_shrink",
            "test_experts.py::test_a_wrong_key_never_connects",
            "test_gating.py::test_balance_loss_has_a_gradient_and_leaves_values_alone",
        ),
    ),
    15: Defect(
        "a pool's timeout killed it, and batches exceeded max_batch_size",
        (
            f"{_HERE}::test_6a15_a_pool_survives_its_timeout_and_keeps_its_batch_size",
            "cpp/test_batching.cpp::BatchingTest.BatchesNeverExceedTheirLimit",
        ),
    ),
    16: Defect("2-D inputs only", ("test_gating.py::test_every_leading_shape_is_routed_per_token",)),
    17: Defect(
        "no tests, nothing to install",
        ("test_cli.py::test_version_names_what_was_built", "test_snippet.py::test_readme_snippet"),
    ),
    18: Defect(
        "declare_experts(wait_timeout=...) raised, and would have reported before anything was stored",
        ("test_network.py::test_declaring_with_wait_timeout_works",),
    ),
    19: Defect(
        "lengths read by a single recv: short reads broke the framing",
        (
            f"{_HERE}::test_6a19_bytes_that_trickle_in_are_still_frames",
            "cpp/test_rpc_message.cpp::RpcMessage.EveryTruncationIsRefused",
        ),
    ),
    20: Defect(
        "announced 127.0.0.1 and listened on every interface",
        (
            "test_network.py::test_announced_address_is_what_the_server_says",
            f"{_HERE}::test_6a20_servers_listen_where_they_say",
        ),
    ),
    21: Defect(
        "the transformer expert wrote to its input: never trainable on a server",
        (
            "test_experts_nn.py::test_built_in_experts_train_on_a_server",
            f"{_HERE}::test_6a21_an_expert_that_writes_to_its_input_harms_nobody",
        ),
    ),
    22: Defect(
        "the README named options that did not exist",
        (f"{_HERE}::test_6a22_commands_of_the_readme_are_understood", "test_snippet.py::test_readme_snippet"),
    ),
    23: Defect("a lone node could not store", ("test_network.py::test_lone_node_stores_and_finds",)),
    24: Defect(
        "repeated(f, n) ran n + 1 times",
        absent="there is no such function: it belonged to scripts that are not part of this package",
    ),
    25: Defect("a port probe killed a handler for good", ("test_failures.py::test_strangers_on_the_ports_do_no_harm",)),
    26: Defect(
        "of 64 experts declared at once 45 to 59 were seen",
        ("test_network.py::test_all_64_experts_of_one_call_are_seen",),
    ),
    27: Defect(
        "one of two servers killed: every step failed for two minutes",
        ("test_failures.py::test_server_killed_mid_batch_and_returned",),
    ),
    28: Defect(
        "19 file descriptors for each expert",
        (
            f"{_HERE}::test_6a28_experts_take_no_file_descriptors",
            "test_responsiveness.py::test_64_experts_take_one_process_few_threads_and_little_time",
        ),
    ),
}

# Its successor hivemind, as of 1.1.12.
HIVEMIND = {
    1: Defect(
        "the balancing loss had no gradient",
        ("test_gating.py::test_balance_loss_has_a_gradient_and_leaves_values_alone",),
    ),
    2: Defect(
        "jitter was written into the caller's input, in evaluation too",
        (f"{_PEERS}::test_6b02_tensors_of_the_caller_are_never_written_to",),
    ),
    3: Defect(
        "k_min held for the batch, not for each sample: NaN for one whose experts were all dead",
        (
            f"{_HERE}::test_6a02_all_experts_of_one_sample_dead_does_not_kill_the_step",
            "cpp/test_call_group.cpp::QuorumTest.EveryTokenNeedsItsAnswers",
        ),
    ),
    4: Defect(
        "beam search: TypeError on grids of three dimensions, ValueError when nothing was found",
        (
            f"{_PEERS}::test_6b04_beam_search_takes_any_grid_and_finds_nothing_without_an_error",
            "test_gating.py::test_gate_equals_a_dense_mixture",
        ),
    ),
    5: Defect(
        "addresses on the command line fell apart into characters",
        ("test_cli.py::test_grids_and_peers", f"{_PEERS}::test_6b05_peers_of_the_command_line_stay_whole"),
    ),
    6: Defect(
        "a default of client_mode was inverted",
        (f"{_PEERS}::test_6b06_nodes_help_others_unless_told_otherwise",),
    ),
    7: Defect(
        "Ctrl-C was disabled in the user's process",
        (
            f"{_PEERS}::test_6b07_signals_stay_the_users",
            "test_lifecycle.py::test_interrupt_finishes_the_batch_and_exits",
        ),
    ),
    8: Defect(
        "checkpoints never pruned, written while training went on",
        (
            "test_checkpoints.py::test_what_was_updated_is_saved_in_the_background_and_old_files_go",
            "test_fetch.py::test_weights_come_as_they_are_between_two_updates",
        ),
    ),
    9: Defect(
        "names could be squatted for ever, node ids belonged to nobody",
        (
            "test_network.py::test_bad_records_are_refused",
            "test_network.py::test_records_travel_and_the_newest_wins",
            "cpp/test_dht_record.cpp::DhtStorage.RefusesWhatIsExpiredTooLongTooBigOrForged",
            "cpp/test_dht_id.cpp::DhtId.NodeIdsAreBoundToKeyAndPuzzle",
        ),
    ),
    10: Defect(
        "values and dictionaries of any size were taken",
        (
            "test_network.py::test_bad_records_are_refused",
            "cpp/test_rpc_calls.cpp::RpcCalls.BudgetsHoldBeforeMemoryIsTaken",
            "cpp/test_wire_reader.cpp::WireReader.BombsAreRefusedAtTheirHeader",
        ),
    ),
    11: Defect(
        "processes of the multiprocessing module's default kind, whose state could not be pickled",
        (f"{_PEERS}::test_6b11_everything_works_in_children_of_every_kind",),
    ),
}

# What users of hivemind, Petals and Gensyn's swarms complained about.
COMPLAINTS = {
    3: Defect(
        "the daemon did not start in time",
        (
            "test_network_node.py::test_unreachable_seed_never_blocks_construction",
            "test_network_node.py::test_address_in_use_names_the_port",
            "test_house.py::test_importing_starts_nothing",
        ),
    ),
    5: Defect(
        "deadlocks and hangs",
        (
            "test_failures.py::test_call_to_nobody_ends_in_time",
            "test_network_node.py::test_shutdown_ends_calls_that_wait",
            "test_lifecycle.py::test_shutdown_without_waiting_leaves_no_caller_hanging",
        ),
    ),
    8: Defect(
        "users had to guess timeouts",
        (
            "cpp/test_replica_calls.cpp::ReplicaCallsTest.AdaptiveDeadlinesComeFromWhatCallsTook",
            "test_replicas.py::test_a_slow_holder_is_hedged_and_the_one_that_answered_learns",
            "test_failures.py::test_stragglers_are_not_waited_for",
        ),
    ),
    13: Defect(
        "too many files and processes",
        (
            f"{_HERE}::test_6a28_experts_take_no_file_descriptors",
            "test_responsiveness.py::test_64_experts_take_one_process_few_threads_and_little_time",
        ),
    ),
    15: Defect(
        "remote calls as slow as Python",
        (
            "test_responsiveness.py::test_callers_of_single_rows_share_batches",
            "test_responsiveness.py::test_pings_are_answered_while_python_holds_the_gil",
        ),
    ),
    16: Defect(
        "errors of a server froze or killed it",
        (
            "test_failures.py::test_an_expert_that_raises_tells_its_caller_and_serves_on",
            "test_server_batches.py::test_one_raising_forward_request_among_many",
        ),
    ),
    19: Defect(
        "broken by each new torch",
        ("ops/test_build.py::test_agrees_with_the_reference_by_the_abi_check",),
    ),
    24: Defect(
        "Ctrl-C did not end it, and orphans stayed",
        (
            "test_lifecycle.py::test_second_interrupt_exits_at_once",
            "test_cli.py::test_ends_with_its_parent",
            "test_demo.py::test_killed_demo_leaves_no_orphans",
        ),
    ),
}
