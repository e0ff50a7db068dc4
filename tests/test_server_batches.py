"""How a runtime runs batches: bad requests harm no other, and no gradient is applied twice."""

from __future__ import annotations

import pytest
import torch
from one_batch import POISON, WIDTH, Scale, answers, backend_of, one_batch, rows
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home import errors
from learning_at_home.runtime.batch import in_mode


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
