"""How a runtime runs batches: bad requests harm no other, and no gradient is applied twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home import errors
from learning_at_home.runtime.batch import in_mode

WIDTH = 4
POISON = 99.0


class Scale(nn.Module):
    """x * weight; counts its passes and raises at POISON. The gradient of `weight` is the sum of x * grad."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))
        self.passes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        if (x == POISON).any():
            raise RuntimeError("poisoned input")
        return x * self.weight


def backend_of(
    module: nn.Module, cls: type[lib.ExpertBackend] = lib.ExpertBackend, uid: str = "expert.0", **kwargs: object
) -> lib.ExpertBackend:
    opt = torch.optim.SGD(module.parameters(), lr=1.0)
    schema = lib.BatchTensorProto(WIDTH)
    return cls(uid, module, opt, args_schema=(schema,), outputs_schema=schema, **kwargs)


@contextmanager
def one_batch(backend: lib.ExpertBackend, **kwargs: object) -> Iterator[lib.TesseractRuntime]:
    """Requests submitted within run as one batch: the runtime starts afterwards."""
    runtime = lib.TesseractRuntime({backend.name: backend}, **kwargs)
    yield runtime
    runtime.start()


def answers(backend: lib.ExpertBackend, requests: Sequence[Sequence[Tensor]], backward: bool, **kwargs: object) -> list:
    """What each request of one batch gets: its tensors, or its error."""
    pool = backend.get_pools()[int(backward)]
    with one_batch(backend, **kwargs) as runtime:
        futures = [pool.submit_task(*tensors, timeout=30.0) for tensors in requests]
    outcomes: list = []
    for future in futures:
        try:
            outcomes.append(future.result())
        except errors.LearningAtHomeError as error:
            outcomes.append(error)
    assert runtime.shutdown(30.0)
    assert runtime.core.counters()["batches"] == 1
    return outcomes


def rows(value: float, count: int = 2) -> Tensor:
    return torch.full((count, WIDTH), value)


def test_one_raising_forward_request_among_many():
    module = Scale()
    values = [1.0, 2.0, 3.0, POISON, 5.0, 6.0, 7.0, POISON, 9.0]
    outcomes = answers(backend_of(module), [(rows(value, 1 + i % 3),) for i, value in enumerate(values)], False)
    for i, (value, outcome) in enumerate(zip(values, outcomes, strict=True)):
        if value == POISON:
            assert isinstance(outcome, errors.ExpertError)
            assert "poisoned input" in str(outcome)
            assert "in forward" in outcome.traceback_text
        else:
            assert torch.equal(outcome[0], rows(value, 1 + i % 3))


def test_one_raising_backward_request_among_many_and_nothing_is_applied_twice():
    module = Scale()
    backend = backend_of(module)
    values = [1.0, 2.0, 3.0, 4.0, 5.0, POISON, 7.0, 8.0]
    outcomes = answers(backend, [(rows(value), rows(2.0)) for value in values], True)
    assert [isinstance(outcome, errors.ExpertError) for outcome in outcomes] == [value == POISON for value in values]
    # 8 rows; 0-3 are answered; 4-7 fail, as do 4-5; then 4, 5 (the culprit) and 6-7
    assert module.passes == [16, 8, 8, 4, 2, 2, 4]
    assert backend.updates == 3
    applied = sum(value * 2 * 2.0 for value in values if value != POISON)
    assert torch.equal(module.weight, torch.ones(WIDTH) - applied)
    assert torch.equal(outcomes[0][0], rows(2.0))  # the weight of the first update
    assert torch.equal(outcomes[4][0], 2.0 * (1 - sum(values[:4]) * 4.0) * rows(1.0))
    assert module.weight.grad is None


def test_an_expert_that_always_fails_is_not_asked_for_ever():
    module = Scale()
    outcomes = answers(backend_of(module), [(rows(POISON, 1),)] * 300, False)
    assert all(isinstance(outcome, errors.ExpertError) for outcome in outcomes)
    assert len(module.passes) < 150


def test_outputs_that_break_the_schema_are_the_culprits_alone():
    class Shrinks(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return (x[:-1] if (x == 5.0).any() else x) * self.weight

    outcomes = answers(backend_of(Shrinks()), [(rows(value),) for value in (1.0, 5.0, 2.0)], False)
    assert torch.equal(outcomes[0][0], rows(1.0))
    assert torch.equal(outcomes[2][0], rows(2.0))
    assert isinstance(outcomes[1], errors.ExpertError)
    assert "2 rows" in str(outcomes[1])


@pytest.mark.parametrize("before_step", [True, False])
def test_an_error_of_the_update_fails_the_batch_once(before_step):
    class Breaks(lib.ExpertBackend):
        tries = 0

        def apply_gradients(self) -> None:
            self.tries += 1
            if not before_step:
                self.opt.step()
            raise OSError("disk full")

    module = Scale()
    backend = backend_of(module, Breaks)
    outcomes = answers(backend, [(rows(1.0), rows(1.0)) for _ in range(4)], True)
    assert all(isinstance(outcome, errors.ExpertError) and "disk full" in str(outcome) for outcome in outcomes)
    assert backend.tries == 1
    assert torch.equal(module.weight, torch.ones(WIDTH) if before_step else torch.full((WIDTH,), -7.0))
    assert module.weight.grad is None


def test_an_optimizer_that_was_stepped_by_an_own_backward_is_not_stepped_again():
    class Own(lib.ExpertBackend):
        def backward(self, *tensors: Tensor) -> list[Tensor]:
            self.expert.weight.grad = torch.ones(WIDTH)
            self.opt.step()
            raise ValueError("after the step")

    module = Scale()
    outcomes = answers(backend_of(module, Own), [(rows(1.0), rows(1.0)) for _ in range(4)], True)
    assert all(isinstance(outcome, errors.ExpertError) for outcome in outcomes)
    assert torch.equal(module.weight, torch.zeros(WIDTH))


def test_gradients_that_an_owner_accumulates_survive_the_errors_of_others():
    class Accumulates(lib.ExpertBackend):
        def apply_gradients(self) -> None:
            self.updates += 1

    module = Scale()
    backend = backend_of(module, Accumulates)
    answers(backend, [(rows(1.0), rows(1.0)), (rows(POISON), rows(1.0)), (rows(2.0), rows(1.0))], True)
    assert torch.equal(module.weight.grad, torch.full((WIDTH,), 6.0))


def test_stochastic_modules_may_run_again():
    class Drops(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    outcomes = answers(backend_of(Drops()), [(rows(value, 50),) for value in (1.0, POISON, 3.0)], False)
    assert set(outcomes[0][0].unique().tolist()) == {0.0, 2.0}
    assert set(outcomes[2][0].unique().tolist()) == {0.0, 6.0}


def test_an_expert_that_overwrites_its_inputs_never_sees_them_again():
    class Overwrites(Scale):
        def forward(self, x: Tensor) -> Tensor:
            x.mul_(2.0)
            if (x == 2 * POISON).any():
                raise RuntimeError("after writing")
            return x * self.weight

    outcomes = answers(backend_of(Overwrites()), [(rows(1.0),), (rows(POISON),)], False)
    assert all(isinstance(outcome, errors.ExpertError) for outcome in outcomes)
    assert torch.equal(answers(backend_of(Overwrites()), [(rows(1.0),), (rows(3.0),)], False)[1][0], rows(6.0))


def test_an_expert_that_exits_ends_nothing_but_its_request():
    class Exits(Scale):
        def forward(self, x: Tensor) -> Tensor:
            if (x == POISON).any():
                raise SystemExit(3)
            return super().forward(x)

    outcomes = answers(backend_of(Exits()), [(rows(POISON),), (rows(1.0),)], False)
    assert isinstance(outcomes[0], errors.ExpertError)
    assert torch.equal(outcomes[1][0], rows(1.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_requests_with_numbers_that_are_none_are_rejected_alone(bad, where):
    module = Scale()
    backend = backend_of(module)
    poisoned = [rows(1.0, 3), rows(1.0, 3)]
    poisoned[where][1, 2] = bad
    outcomes = answers(backend, [(rows(1.0), rows(1.0)), poisoned, (rows(2.0), rows(1.0))], True)
    assert isinstance(outcomes[1], errors.Rejected)
    name = "output gradient 0" if where else "input 0"
    assert f"row 1: {name} holds NaN or infinite values" in str(outcomes[1])
    assert module.passes == [4]  # one pass, without the culprit
    assert backend.updates == 1
    assert torch.equal(module.weight, torch.full((WIDTH,), 1 - 6.0))
    assert torch.equal(outcomes[2][0], rows(1.0))


def test_rows_of_too_large_a_norm_are_rejected_alone():
    backend = backend_of(Scale(), max_input_norm=10.0, max_grad_norm=4.0)
    requests = [(rows(5.0), rows(1.0)), (rows(5.1), rows(1.0)), (rows(1.0), rows(2.5)), (rows(1.0), rows(2.0))]
    outcomes = answers(backend, requests, True)
    assert [isinstance(outcome, errors.Rejected) for outcome in outcomes] == [False, True, True, False]
    assert "row 0: input 0 has an L2 norm of 10.2, above max_input_norm=10" in str(outcomes[1])
    assert "above max_grad_norm=4" in str(outcomes[2])
    assert backend.updates == 1


def test_forward_requests_are_screened_on_request_only():
    nan = rows(float("nan"))
    assert answers(backend_of(Scale()), [(nan,)], False)[0][0].isnan().all()
    screened = answers(backend_of(Scale(), screen_forward=True), [(nan,), (rows(1.0),)], False)
    assert isinstance(screened[0], errors.Rejected)
    assert torch.equal(screened[1][0], rows(1.0))


def test_sums_that_overflow_do_not_reject_good_rows():
    backend = backend_of(Scale())
    assert torch.equal(answers(backend, [(rows(3e38), rows(0.0))], True)[0][0], rows(0.0))
    assert backend.updates == 1


def test_gradients_that_are_not_finite_never_reach_the_optimizer():
    class Log(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return x.log() * self.weight  # at 0 the gradient of weight is infinite

    module = Log()
    backend = backend_of(module)
    outcomes = answers(backend, [(rows(1.0), rows(1.0)), (rows(0.0), rows(1.0)), (rows(1.0), rows(1.0))], True)
    assert isinstance(outcomes[1], errors.Rejected)
    assert torch.equal(outcomes[0][0], rows(1.0))
    assert torch.equal(outcomes[2][0], rows(1.0))
    assert module.weight.isfinite().all()
    assert backend.updates == 2


def test_gradients_are_clipped_and_the_scheduler_steps_once_an_update():
    module = Scale()
    opt = torch.optim.SGD(module.parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    schema = lib.BatchTensorProto(WIDTH)
    backend = lib.ExpertBackend("expert.0", module, opt, args_schema=(schema,), clip_grad_norm=1.0, scheduler=scheduler)
    answers(backend, [(rows(10.0), rows(1.0)), (rows(20.0), rows(1.0))], True)
    torch.testing.assert_close(module.weight.detach(), torch.full((WIDTH,), 0.5))  # a step of length 1, each its half
    assert backend.updates == 1
    assert scheduler.get_last_lr() == [0.5]
    assert opt.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("name", ["clip_grad_norm", "max_input_norm", "max_grad_norm"])
def test_limits_are_checked(name):
    with pytest.raises(errors.InvalidArgument, match=rf"{name}: expected a norm above 0 or None, got -1"):
        backend_of(Scale(), **{name: -1.0})
    with pytest.raises(errors.InvalidArgument, match="scheduler"):
        backend_of(Scale(), scheduler="cosine")


def test_modes_are_the_callers_and_leave_no_trace():
    class Tells(Scale):
        def forward(self, x: Tensor) -> Tensor:
            return x * (2.0 if self.training else 3.0) + 0.0 * self.weight

    backend = backend_of(Tells())
    modes = [True, False, True, False]
    for pool, inputs in zip(backend.get_pools(), (1, 2), strict=True):
        with one_batch(backend) as runtime:
            futures = [pool.submit_task(*[rows(1.0)] * inputs, training=training) for training in modes]
        for training, future in zip(modes, futures, strict=True):
            assert torch.equal(future.result()[0], rows(2.0 if training else 3.0))
        assert runtime.shutdown(30.0)
        assert backend.expert.training


def test_frozen_parts_of_an_expert_stay_frozen():
    module = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout())
    module[0].eval()
    with in_mode(module, False):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, False, True]


def test_autocast_computes_in_bfloat16_and_answers_in_the_schemas_dtypes():
    class Notes(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            dtypes.append((x.dtype, y.dtype))
            return y

    dtypes: list[tuple[torch.dtype, torch.dtype]] = []
    torch.manual_seed(0)
    module = Notes(WIDTH, WIDTH)
    x, weight = torch.randn(2, WIDTH), module.weight.detach().clone()
    local = nn.functional.linear(x, weight, module.bias.detach().clone())
    y = answers(backend_of(module), [(x,)], False, autocast_dtype=torch.bfloat16)[0][0]
    gradient = answers(backend_of(module), [(x, rows(1.0))], True, autocast_dtype=torch.bfloat16)[0][0]
    assert dtypes == [(torch.float32, torch.bfloat16)] * 2
    assert y.dtype == gradient.dtype == module.weight.dtype == torch.float32
    torch.testing.assert_close(y, local, rtol=0.02, atol=0.02)
    torch.testing.assert_close(gradient, rows(1.0) @ weight, rtol=0.02, atol=0.02)
    with pytest.raises(errors.InvalidArgument, match=r"autocast_dtype.*got torch.float16 .*loss scaling"):
        lib.TesseractRuntime({"expert.0": backend_of(Scale())}, autocast_dtype=torch.float16)


def test_requests_that_would_expire_in_the_queue_are_refused_at_once():
    class Slow(Scale):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.1)
            assert may_run.wait(30.0)
            return super().forward(x)

    may_run = threading.Event()
    may_run.set()
    backend = backend_of(Slow(), max_batch_size=2)
    forward = backend.get_pools()[0]
    runtime = lib.TesseractRuntime({"expert.0": backend})
    runtime.start()
    forward.submit_task(rows(1.0)).result()  # now it is known that a batch takes 0.1 s
    may_run.clear()
    waiting = [forward.submit_task(rows(1.0), timeout=600.0) for _ in range(20)]
    assert runtime.core.wait_us() >= 1_900_000  # the first may be running
    with pytest.raises(errors.Overloaded, match=r"expert 'expert.0': the wait would be about \d+ ms") as refused:
        forward.submit_task(rows(1.0), timeout=1.0)
    assert 1.0 < refused.value.retry_after < 60.0
    may_run.set()
    for future in waiting:
        assert torch.equal(future.result()[0], rows(1.0))
    assert runtime.core.wait_us() == 0
    forward.submit_task(rows(1.0), timeout=1.0)
    assert runtime.shutdown(30.0)


@pytest.mark.parametrize("device", [["cpu", "cpu"], {"expert.0": "cpu", "expert.1": "cpu"}])
def test_devices_run_their_batches_side_by_side(device):
    class Meets(Scale):
        def forward(self, x: Tensor) -> Tensor:
            if (x == 1.0).all():
                both.wait(30.0)  # passes only if another batch runs at the same time
            return super().forward(x)

    two_lanes = isinstance(device, list)
    both = threading.Barrier(2 if two_lanes else 1)
    backends = {uid: backend_of(Meets(), uid=uid) for uid in ("expert.0", "expert.1")}
    runtime = lib.TesseractRuntime(backends, device=device)
    assert len(runtime.devices) == (2 if two_lanes else 1)
    futures = [backend.get_pools()[0].submit_task(rows(1.0)) for backend in backends.values()]
    runtime.start()
    for future in futures:
        assert torch.equal(future.result()[0], rows(1.0))
    assert runtime.shutdown(30.0)


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ([], "at least one device"),
        ({"expert.1": "cpu"}, r"look at \['expert.0', 'expert.1'\]"),
        ("sofa", "device: "),
    ],
)
def test_devices_are_checked(device, text):
    with pytest.raises(errors.InvalidArgument, match=text):
        lib.TesseractRuntime({"expert.0": backend_of(Scale())}, device=device)


BIG = 100_000  # rows: 1.6 MB, more than a chunk


def big_answer(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """A forward answer of an expert to a large request that is alone in its batch, and how much was not copied."""
    backend = backend_of(module, max_batch_size=BIG)
    with one_batch(backend) as runtime:
        future = backend.get_pools()[0].submit_task(x)
    y = future.result()[0]
    assert runtime.shutdown(30.0)
    return y, runtime.core.counters()["lent"]


class Identity(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return x


class Keeps(Scale):
    """Keeps its input and its output."""

    def forward(self, x: Tensor) -> Tensor:
        self.x, self.y = x, x * 2.0
        return self.y


class Cached(Scale):
    """Returns what it will write to with the next request."""

    def forward(self, x: Tensor) -> Tensor:
        self.cache = torch.zeros_like(x) if not hasattr(self, "cache") else self.cache
        return self.cache.copy_(x)


class Tail(Scale):
    """Returns a view of its input, with a part of it twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1, WIDTH)[1].repeat(2, 1) if len(x) < BIG else x.flip(0)[:].flip(0)


@pytest.mark.parametrize(
    ("module", "expected", "lent"),
    [(Identity, 1.0, 2), (Scale, 1.0, 2), (Keeps, 2.0, 1), (Cached, 1.0, 1), (Tail, 1.0, 2)],
)
def test_large_lone_requests_and_results_are_not_copied(module, expected, lent):
    x = torch.randn(BIG, WIDTH)
    y, count = big_answer(module(), x)
    assert torch.equal(y, x * expected)
    assert count == lent  # the request, and the result if nobody else holds it


def test_what_an_expert_keeps_of_a_request_stays():
    class Remembers(Scale):
        def forward(self, x: Tensor) -> Tensor:
            kept.append(x)
            return x * self.weight

    kept: list[Tensor] = []
    backend = backend_of(Remembers(), max_batch_size=BIG)
    runtime = lib.TesseractRuntime({"expert.0": backend})
    runtime.start()
    for value in (1.0, 2.0, 3.0):
        backend.get_pools()[0].submit_task(rows(value, BIG)).result()
    assert runtime.shutdown(30.0)
    for x, value in zip(kept, (1.0, 2.0, 3.0), strict=True):
        assert torch.equal(x, rows(value, BIG))


@pytest.mark.parametrize("module", [Identity, Cached, Scale])
def test_large_results_over_the_network_are_those_of_their_request(module):
    backend = backend_of(module(), max_batch_size=BIG)
    with lib.TesseractServer(None, {"expert.0": backend}, port=0, insecure=True) as server:
        expert = lib.RemoteExpert("expert.0", "127.0.0.1", server.port, insecure=True)
        inputs = [torch.randn(BIG, WIDTH) for _ in range(6)]
        with ThreadPoolExecutor(3) as callers, torch.no_grad():
            for x, y in zip(inputs, callers.map(expert, inputs), strict=True):
                assert torch.equal(y, x)
        x = inputs[0].requires_grad_()
        expert(x).sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))
        assert server.counters()["lent"] > 0
