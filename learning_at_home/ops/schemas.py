"""The ops of learning_at_home: the table of contents.

Everything around the experts of a mixture: choose them, send tokens to them, mix what comes back, and the
gradients of all three; and what an expert computes between its matrix products. Each op has the same name in
`reference.py` (the specification, plain torch), in `csrc/ops/*.cpp` (checks and allocation) and in
`csrc/ops/{cpu,cuda}/` (kernels).

T tokens, k choices, E = prod(grid) experts, R rows. An assignment (t, j) is token t's j-th choice; it owns
row `offset[index[t, j]] + rank[t, j]`, or none when its index or rank is -1. Rows of one expert are
contiguous, in token order. Index tensors are int32. All tensors are contiguous; every output element is
written; output shapes follow from input shapes.

The schemas are defined here and not in C++ so that tags work with every torch the binary serves, and so that
the reference can stand in under the same names when there is no binary. Sizes that follow from T are SymInt:
an int would recompile for every batch size.
"""

import torch

NAMESPACE = "learning_at_home"

SCHEMAS = {
    # choose the k best alive experts of a product grid; count, rank and lay out their rows
    "route_grid": """(Tensor logits, int[] grid, int k, *, Tensor? alive=None, int beam=0, SymInt capacity=0,
        int align=1, bool want_lse=False, bool want_stats=False)
        -> (Tensor index, Tensor score, Tensor rank, Tensor offset, Tensor lse, Tensor stats)""",
    # the same of E experts with a logit each: score 0: the logit, 1: its sigmoid; chosen by score + bias, among the
    # experts of the best groups
    "route": """(Tensor logits, int k, *, Tensor? alive=None, Tensor? bias=None, int score=0, int groups=1,
        int top_groups=1, SymInt capacity=0, int align=1, bool want_lse=False, bool want_stats=False)
        -> (Tensor index, Tensor score, Tensor rank, Tensor offset, Tensor lse, Tensor stats)""",
    # rank and lay out choices that were made elsewhere; count is taken before capacity
    "plan": """(Tensor index, int experts, *, SymInt capacity=0, int align=1)
        -> (Tensor rank, Tensor offset, Tensor count)""",
    # gradient of the logits from those of score, lse and stats; lse is read for the last two only
    "route_backward": """(Tensor? grad_score, Tensor? grad_lse, Tensor? grad_stats, Tensor logits, int[] grid,
        Tensor index, Tensor lse, *, Tensor? alive=None, int score=0) -> Tensor grad_logits""",
    # copy each token to the rows of its experts (any dtype); unowned rows are zero, their source is -1
    "dispatch": """(Tensor x, Tensor index, Tensor rank, Tensor offset, *, int align=1)
        -> (Tensor rows, Tensor source)""",
    # dispatch, rounded to `dtype`: int8, float8_e4m3fn (with a float32 scale a row, or one every `block` elements of a
    # row) or bfloat16 (scale is empty); unowned rows and their scales are zero
    "dispatch_quantized": """(Tensor x, Tensor index, Tensor rank, Tensor offset, *, ScalarType dtype, int block=0,
        int align=1) -> (Tensor rows, Tensor scale, Tensor source)""",
    # rows times their scales
    "dequantize": """(Tensor rows, Tensor scale, *, ScalarType dtype, int block=0) -> Tensor out""",
    # sum the row gradients of each token; rows that are not ok count as zero and are not read
    "dispatch_backward": """(Tensor grad_rows, Tensor index, Tensor rank, Tensor offset, *, Tensor? ok=None)
        -> Tensor grad_x""",
    # weighted sum of each token's live rows; weights by `normalize` from the live scores s:
    # 0: softmax(s), 1: s / sum(s), 2: s
    "combine": """(Tensor rows, Tensor score, Tensor index, Tensor rank, Tensor offset, *, Tensor? ok=None,
        int normalize=0, Tensor? residual=None) -> (Tensor out, Tensor weight)""",
    # gradients of rows (zero where unowned or missing) and of score (zero where void or missing)
    "combine_backward": """(Tensor grad, Tensor rows, Tensor score, Tensor weight, Tensor index, Tensor rank,
        Tensor offset, *, Tensor? ok=None, int normalize=0) -> (Tensor grad_rows, Tensor grad_score)""",
    # silu(gate) * up * weight of rows [gate, up]; weight of each row, none: 1
    "swiglu": """(Tensor x, Tensor? weight=None) -> Tensor out""",
    # gradients of x and of weight (empty where there is none)
    "swiglu_backward": """(Tensor grad, Tensor x, Tensor? weight=None) -> (Tensor grad_x, Tensor grad_weight)""",
}

# These call torch's own matrix products (grouped.py), on every device
GROUPED = {
    # out[i] = rows[i] @ weight[e] of the expert e that owns row i
    "grouped_mm": """(Tensor rows, Tensor weight, Tensor offset) -> Tensor out""",
    # gradients of rows and of weight
    "grouped_mm_backward": """(Tensor grad, Tensor rows, Tensor weight, Tensor offset)
        -> (Tensor grad_rows, Tensor grad_weight)""",
}


def define() -> torch.library.Library:
    """Define every op. The ops live as long as the returned library does."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for name, schema in {**SCHEMAS, **GROUPED}.items():
        # kernels require contiguous tensors: the compiler must keep the strides they were traced with
        library.define(name + " ".join(schema.split()), tags=(torch.Tag.needs_fixed_stride_order,))
    return library
