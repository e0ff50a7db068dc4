"""The table of defects that kernels of mixtures had elsewhere, and the tests that they do not come back here.

The numbers are those of the survey with which the kernels began.
"""

from __future__ import annotations

from defects import Defect

_HERE = "ops/test_defects_ops.py"
_ROUTE = "ops/test_route_grid.py"
_CPP = "cpp/test_ops_movement.cpp"

KERNELS = {
    1: Defect(
        "rows of one expert in another order in each run (sglang#33511, vllm#52525)",
        (
            f"{_HERE}::test_01_the_same_bits_in_100_runs",
            "ops/test_invariants.py::test_a_plan_is_a_permutation_in_the_order_of_tokens",
            "cpp/test_ops_route.cpp::OpsRoute.EqualsTheDefinitionForAnySplit",
        ),
    ),
    2: Defect(
        "writes out of bounds where more rows are routed than fit (TransformerEngine#3346, #3347)",
        (
            f"{_HERE}::test_02_all_tokens_to_one_expert",
            "cpp/test_ops_route.cpp::OpsRoute.AllTokensToOneExpertWithCapacity",
            f"{_CPP}::OpsDispatch.AllTokensToOneExpertWithCapacity",
            f"{_CPP}::OpsDispatch.MoreRowsThanFitAreDropped",
            f"{_CPP}::OpsDispatch.BrokenPlansTouchNothingOutside",
            f"{_CPP}::OpsCombine.BrokenPlansTouchNothingOutside",
        ),
    ),
    3: Defect(
        "wrong, or eight times slower, with many experts or choices (TransformerEngine#2821, sglang#13969)",
        (f"{_HERE}::test_03_any_number_of_experts_and_choices", f"{_ROUTE}::test_the_largest_grids"),
    ),
    4: Defect(
        "logits in bfloat16: other experts for one token in twenty (sglang#33764)",
        (
            "test_moe.py::test_autocast_computes_experts_in_half_precision_and_routes_in_full",
            f"{_HERE}::test_04_logits_are_float32_under_autocast",
            f"{_ROUTE}::test_half_logits_are_scored_in_float32",
        ),
    ),
    5: Defect(
        "an index in the low bits of the score: errors of 1e-4 at 1024 experts (SonicMoE)",
        (f"{_HERE}::test_05_neighbouring_floats_are_ordered_and_scores_are_the_logits",),
    ),
    6: Defect(
        "wrong results passed tests whose inputs were as small as their tolerance (sonic-moe#63)",
        (f"{_HERE}::test_06_inputs_are_of_unit_scale_and_errors_are_relative",),
    ),
    7: Defect(
        "kernels on the default stream (Tutel, apex#1956), calls that end the capture of a graph (sglang#7918)",
        (
            f"{_HERE}::test_07_every_launch_names_its_stream",
            f"{_HERE}::test_07_side_streams_and_graphs_give_the_same",
        ),
    ),
    8: Defect(
        "waiting for the device: shapes that depend on values (pytorch#192343, Tutel, Megatron)",
        (
            f"{_HERE}::test_08_shapes_follow_from_shapes",
            f"{_HERE}::test_08_no_kernel_waits_or_allocates",
            "test_moe.py::test_compiles_without_graph_breaks",
        ),
    ),
    9: Defect(
        "a balancing loss whose bits depend on the order of threads (TransformerEngine)",
        (f"{_HERE}::test_09_losses_have_the_same_bits_for_any_threads", f"{_ROUTE}::test_deterministic"),
    ),
    10: Defect(
        "product keys: all k * k candidates dead, ties with a lower id in a later row, NaN, fewer than k alive",
        (
            f"{_HERE}::test_10_all_candidates_of_the_best_prefixes_and_columns_dead",
            f"{_ROUTE}::test_ties_go_to_the_lower_id",
            f"{_ROUTE}::test_void_experts",
            f"{_ROUTE}::test_nothing_alive",
            f"{_ROUTE}::test_matches_reference",
        ),
    ),
    11: Defect(
        "0 * NaN of rows that failed",
        (
            "ops/test_invariants.py::test_nan_of_missing_rows_never_leaks",
            "ops/test_combine.py::test_no_live_row_gives_zeros_or_the_residual",
            f"{_CPP}::OpsCombine.EqualsASumInDoubleAndMissingRowsNeverLeak",
        ),
    ),
    12: Defect(
        "bfloat16 came back as float32 (Tutel)",
        (f"{_HERE}::test_12_outputs_and_gradients_have_the_dtype_of_the_tokens",),
    ),
    13: Defect(
        "grouped products: strides on the CPU (transformers#46743), breaks of compiled graphs (scattermoe#12)",
        (
            "ops/test_grouped.py::test_gradients_without_strides_and_rows_of_any_width",
            "ops/test_grouped.py::test_an_expert_compiles_without_graph_breaks",
        ),
    ),
    14: Defect(
        "offsets of 32 bits: overflow where rows * hidden is more than 2^31",
        (
            "cpp/test_ops_large.cpp::OpsLarge.Dispatch",
            "cpp/test_ops_large.cpp::OpsLarge.CombineAndItsGradients",
            "cpp/test_ops_large.cpp::OpsLarge.Swiglu",
            "cpp/test_ops_large.cpp::OpsLarge.RouteAndItsGradient",
        ),
    ),
    15: Defect(
        "installing: 'No module named torch' beside a torch (megablocks#78, gsplat#436), sources without headers",
        (
            f"{_HERE}::test_15_an_isolated_build_finds_the_torch_that_is_there",
            f"{_HERE}::test_15_the_source_archive_has_all_sources",
        ),
    ),
    16: Defect(
        "a binary for one torch: undefined symbols with the next (grouped_gemm#30, DeepGEMM#135)",
        (
            "ops/test_build.py::test_the_binary_knows_only_the_stable_abi",
            "ops/test_build.py::test_the_binary_finds_torch_without_a_path",
            "ops/test_build.py::test_agrees_with_the_reference_by_the_abi_check",
            f"{_HERE}::test_16_the_stream_of_torch_may_be_missing",
        ),
    ),
    17: Defect(
        "a binary that does not load ends in 'No such operator' (Tutel#190)",
        ("ops/test_build.py::test_without_a_binary_the_reference_serves",),
    ),
}
