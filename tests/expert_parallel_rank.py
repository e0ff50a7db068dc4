"""One rank of the checks in `test_expert_parallel.py`: python expert_parallel_rank.py RANK WORLD STORE.

Every rank makes the tokens of all ranks, computes with one process's `MoE` what they should give, and compares its own
part. Prints PASSED and the name after each check; the first that fails ends the process, and with it the others.
"""

from __future__ import annotations

import copy
import datetime
import os
import sys
import time
import traceback

import pytest
import torch
import torch.distributed as dist
from expert_parallel_checks import (
    EXPERTS,
    HIDDEN,
    INNER,
    check_20_steps,
    check_gradients,
    check_small_equal_shares,
    make,
    no_host,
    refused,
    same,
    sent_rows,
    tokens_of_ranks,
)
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from learning_at_home import ops
from learning_at_home.nn import ExpertParallelMoE, GridRouter, Router, data_parallel

TIMEOUT = datetime.timedelta(seconds=240)  # a busy machine starts one rank long after another


def training_of_a_router() -> None:
    check_20_steps(make())


def training_of_a_grid() -> None:
    check_20_steps(make(GridRouter, (2, 4)))


def training_with_a_balancing_bias() -> None:
    check_20_steps(make(score="sigmoid", balance_bias=True))


def training_in_equal_shares() -> None:
    check_20_steps(make(GridRouter, (2, 4)), peer_capacity=4.0)


def gradients() -> None:
    world = dist.get_world_size()
    check_gradients(make(), [16] * world)
    check_gradients(make(GridRouter, (4, 2)), [16] * world)
    check_gradients(make(score="sigmoid", groups=4, top_groups=2), [16] * world)
    check_gradients(make(k=1), [16] * world)
    check_gradients(make(k=6), [16] * world)  # more choices than ranks


def gradients_in_equal_shares() -> None:
    check_gradients(make(score="sigmoid"), [16] * dist.get_world_size(), peer_capacity=4.0)
    check_gradients(make(), [16] * dist.get_world_size(), peer_capacity=4.0)


def gradients_with_dead_experts() -> None:
    world = dist.get_world_size()
    half = ops.alive_bitmap([4, 5, 7], EXPERTS)  # some ranks own none
    for peer_capacity in (None, 4.0):
        check_gradients(make(), [16] * world, half, peer_capacity)
        check_gradients(make(k=4), [16] * world, half, peer_capacity)  # less alive than choices
        check_gradients(make(), [16] * world, ops.alive_bitmap([], EXPERTS), peer_capacity)


def ranks_without_tokens() -> None:
    world = dist.get_world_size()
    check_gradients(make(), [5, 3, 9, 0][-world:])
    layer = ExpertParallelMoE.from_local(make())
    for peer_capacity in (None, 1.0):
        layer.peer_capacity = peer_capacity
        out, losses = layer(torch.zeros(0, 3, HIDDEN), want_losses=True)  # none anywhere
        (out.sum() + losses.balance + losses.z).backward()
        assert out.shape == (0, 3, HIDDEN)
        assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


def small_equal_shares() -> None:
    check_small_equal_shares(make())
    check_small_equal_shares(make(score="sigmoid"))


def capacity_of_the_router() -> None:
    moe = make(capacity_factor=0.5)
    x = tokens_of_ranks(*[16] * dist.get_world_size())[dist.get_rank()]
    assert (moe.router(x).rank < 0).any()
    for peer_capacity in (None, 4.0):
        layer = ExpertParallelMoE.from_local(moe, peer_capacity=peer_capacity)
        same(layer(x.view(2, 8, HIDDEN)).view(16, HIDDEN), moe(x))


def a_token_crosses_once() -> None:
    """Tokens whose choices are all on the last rank, half of them; the others choose on two ranks."""
    world = dist.get_world_size()
    owned = EXPERTS // world
    moe = make(k=owned)
    x = torch.zeros(10, HIDDEN)
    with torch.no_grad():
        moe.router.proj.weight.zero_()
        moe.router.proj.weight[-owned:, 0] = 1
        moe.router.proj.weight[:1, 1] = moe.router.proj.weight[-1:, 1] = 1  # and ties, which go to the first ranks
    x[:5, 0] = x[5:, 1] = 1
    peers = [{int(e) // owned for e in choices} for choices in moe.router(x).index]
    assert [len(there) for there in peers] == [1] * 5 + [2] * 5
    layer = ExpertParallelMoE.from_local(moe)
    with sent_rows(HIDDEN) as sent:
        out = layer(x)
    arrived = sum(len([there for there in peers if dist.get_rank() in there]) for _ in range(world))
    assert [rows for rows, _ in sent] == [15, arrived], sent
    same(out, moe(x))


def autocast_routes_in_full_precision() -> None:
    moe = make(k=2)
    x = tokens_of_ranks(*[64] * dist.get_world_size())[dist.get_rank()]
    layer = ExpertParallelMoE.from_local(moe)
    want, _ = moe(x, want_losses=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), sent_rows(HIDDEN) as sent:
        got, losses = layer(x, want_losses=True)
        local = moe(x)
    assert {dtype for _, dtype in sent} == {torch.bfloat16}
    assert got.dtype == local.dtype == torch.bfloat16
    assert losses.balance.dtype == losses.z.dtype == torch.float32
    # as far from the truth as one process; a choice that differs would be some ten per cent
    assert 0 < (got - want).norm() < 0.01 * want.norm()
    (got.float().square().mean() + losses.balance).backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any() for p in layer.parameters())


def equal_shares_ask_no_device() -> None:
    layer = ExpertParallelMoE.from_local(make(), peer_capacity=1.0)
    x = tokens_of_ranks(*[16] * dist.get_world_size())[dist.get_rank()]
    with no_host():
        out, losses = layer(x, want_losses=True)
        (out.square().mean() + losses.balance + losses.z).backward()
    layer.peer_capacity = None
    with no_host(), pytest.raises(BlockingIOError, match="tolist"):  # by counts it asks
        layer(x)


def ranks_start_from_the_first_router_and_their_own_experts() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    layer = ExpertParallelMoE(Router(HIDDEN, EXPERTS, 2), INNER)
    experts = [torch.empty_like(layer.experts.w_in) for _ in range(world)]
    dist.all_gather(experts, layer.experts.w_in.detach())
    assert not torch.equal(experts[0], experts[-1])
    torch.manual_seed(rank)
    routers = [torch.empty(EXPERTS, HIDDEN) for _ in range(world)]
    layer = ExpertParallelMoE(Router(HIDDEN, EXPERTS, 2), INNER)
    dist.all_gather(routers, layer.router.proj.weight.detach())
    assert all(torch.equal(router, routers[0]) for router in routers)
    torch.manual_seed(0)
    assert torch.equal(routers[0], Router(HIDDEN, EXPERTS, 2).proj.weight)


def arguments_out_of_range() -> None:
    world = dist.get_world_size()
    with refused(f"router: expected experts that divide by the {world} ranks of the group, got 9"):
        ExpertParallelMoE(Router(HIDDEN, 9, 2), INNER)
    for factor in (0.0, float("inf")):
        with refused(f"peer_capacity: expected a positive number or None, got {factor}"):
            ExpertParallelMoE(Router(HIDDEN, EXPERTS, 2), INNER, peer_capacity=factor)
    with refused(r"x: expected \[..., 12\], got \[3, 5\]"):
        ExpertParallelMoE.from_local(make())(torch.ones(3, 5))


def groups_of_one_and_two() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    x = tokens_of_ranks(*[9] * world)[rank]
    groups = [dist.new_group([*range(first, first + world // 2)]) for first in range(0, world, world // 2)]
    mine = groups[rank // (world // 2)]
    moe = make()
    layer = ExpertParallelMoE.from_local(moe, mine)
    same(layer(x), moe(x))
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.experts.w_out *= 2
    same(twin(x), 2 * layer(x))
    with refused("process_group: expected the ranks .* of layer '0', got"):
        data_parallel(torch.nn.Sequential(layer))
    data_parallel(torch.nn.Sequential(layer), mine)
    other = groups[1 - rank // (world // 2)]
    with refused("process_group: expected a group that this process is in"):
        ExpertParallelMoE(moe.router, INNER, other)


def a_local_mixture_in_data_parallel() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    moe = make(GridRouter, (2, 4))
    model = DistributedDataParallel(copy.deepcopy(moe))
    tokens = tokens_of_ranks(*[16] * world)
    for m, x in ((moe, torch.cat(tokens)), (model, tokens[rank])):
        out, losses = m(x, want_losses=True)
        (out.square().mean() + 0.2 * losses.z).backward()  # balance is of each rank's own tokens there
    for got, want in zip(model.parameters(), moe.parameters(), strict=True):
        same(got.grad, want.grad)


def compiled() -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    for peer_capacity in (1.0, None):
        layer = ExpertParallelMoE.from_local(make(), peer_capacity=peer_capacity)

        def step(x: Tensor, layer: ExpertParallelMoE = layer) -> Tensor:
            out, losses = layer(x, want_losses=True)
            return out.square().mean() + losses.balance + losses.z

        fast = torch.compile(step, fullgraph=peer_capacity is not None, backend="aot_eager")
        for count in (9, 16):
            x = tokens_of_ranks(*[count] * world)[rank]
            grads = [torch.autograd.grad(f(x), (x, *layer.parameters())) for f in (step, fast)]
            for want, got in zip(*grads, strict=True):
                same(got, want)


def a_rank_that_dies_is_an_error_for_the_others() -> None:
    rank = dist.get_rank()
    layer = ExpertParallelMoE.from_local(make(), dist.new_group(timeout=datetime.timedelta(seconds=20)))
    x = tokens_of_ranks(*[9] * dist.get_world_size())[rank]
    layer(x)
    if rank == dist.get_world_size() - 1:
        leave(0, "a_rank_that_dies_is_an_error_for_the_others")
    begin = time.monotonic()
    with pytest.raises(RuntimeError):
        layer(x)
    assert time.monotonic() - begin < 40


def leave(status: int, passed: str = "") -> None:
    if passed:
        print("PASSED", passed)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # no rank waits for another; and gloo's threads now and then abort an interpreter's exit


ALWAYS = (
    training_of_a_router,
    training_of_a_grid,
    training_with_a_balancing_bias,
    training_in_equal_shares,
    gradients,
    gradients_in_equal_shares,
    gradients_with_dead_experts,
    ranks_without_tokens,
    small_equal_shares,
    capacity_of_the_router,
    a_token_crosses_once,
    autocast_routes_in_full_precision,
    equal_shares_ask_no_device,
    ranks_start_from_the_first_router_and_their_own_experts,
    arguments_out_of_range,
    groups_of_one_and_two,
    a_local_mixture_in_data_parallel,
    a_rank_that_dies_is_an_error_for_the_others,  # the last one: nothing works after it
)
CHECKS = {2: (compiled, *ALWAYS), 4: ALWAYS}  # by the number of ranks


def main(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    with refused("process_group: expected torch.distributed to be initialized"):
        ExpertParallelMoE(Router(HIDDEN, EXPERTS, 2), INNER)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=TIMEOUT)
    for check in CHECKS[world]:
        try:
            check()
        except BaseException:
            print("FAILED", check.__name__)
            traceback.print_exc()
            leave(1)
        print("PASSED", check.__name__, flush=True)
    leave(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
