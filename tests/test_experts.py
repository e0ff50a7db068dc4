"""A remote expert is the same function as the module it serves: values, gradients, updates, errors."""

import copy
import threading
import time

import pytest
import torch
from conftest import wait_until
from local_swarm import HIDDEN, Block, assert_close, grid_uids, sgd_backend, swarm
from torch import nn

import learning_at_home as lib
from learning_at_home import errors


@pytest.fixture(scope="module")
def blocks():
    with swarm(grid_uids([4])) as running:
        yield running


def test_lone_request_equals_the_local_module(blocks):
    expert, local = blocks.expert("expert.0"), copy.deepcopy(blocks.local["expert.0"])
    x = torch.randn(7, HIDDEN, requires_grad=True)
    x_local = x.detach().clone().requires_grad_()
    grad = torch.randn(7, HIDDEN)
    y, y_local = expert(x), local(x_local)
    assert_close(y, y_local, 1e-6)
    y.backward(grad)
    y_local.backward(grad)
    assert_close(x.grad, x_local.grad, 1e-6)
    with torch.no_grad():
        for p in local.parameters():
            p.sub_(0.1 * p.grad)
    served = blocks.backends["expert.0"].expert
    for p, p_local in zip(served.parameters(), local.parameters(), strict=True):
        assert_close(p, p_local, 1e-6)


def test_batched_requests_equal_one_batch_and_take_one_step():
    calls = 6
    with swarm(["expert.0"], min_batch_size=calls * 3, timeout=20.0) as running:
        expert, local = running.expert("expert.0"), running.local["expert.0"]
        xs = [torch.randn(3, HIDDEN, requires_grad=True) for _ in range(calls)]
        grads = [torch.randn(3, HIDDEN) for _ in range(calls)]
        outputs: list[torch.Tensor] = [torch.empty(0)] * calls

        def step(i: int) -> None:
            outputs[i] = expert(xs[i])
            outputs[i].backward(grads[i])

        threads = [threading.Thread(target=step, args=(i,)) for i in range(calls)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        x_local = torch.cat([x.detach() for x in xs]).requires_grad_()
        y_local = local(x_local)
        y_local.backward(torch.cat(grads))
        assert_close(torch.cat(outputs), y_local, 1e-5)
        assert_close(torch.cat([x.grad for x in xs]), x_local.grad, 1e-5)
        assert running.backends["expert.0"].updates == 1
        for p, p_local in zip(running.backends["expert.0"].expert.parameters(), local.parameters(), strict=True):
            assert_close(p, p_local - 0.1 * p_local.grad, 1e-5)
        counters = running.server.counters()
        assert counters["batches"] == 2  # one forward, one backward, for six callers


def test_backward_is_called_although_the_input_needs_no_gradient(blocks):
    before = blocks.backends["expert.1"].updates
    blocks.expert("expert.1")(torch.randn(2, HIDDEN)).sum().backward()
    assert blocks.backends["expert.1"].updates == before + 1


def test_no_grad_and_repeated_backward(blocks):
    expert = blocks.expert("expert.1")
    before = blocks.backends["expert.1"].updates
    with torch.no_grad():
        assert not expert(torch.randn(2, HIDDEN)).requires_grad
    y = expert(torch.randn(2, HIDDEN))
    y.sum().backward(retain_graph=True)
    y.sum().backward()  # each backward execution is a request of its own
    assert blocks.backends["expert.1"].updates == before + 2


def test_eval_mode_reaches_the_expert():
    with swarm(["expert.0"], make_expert=lambda: nn.Dropout(0.5), make_backend=_dropout_backend) as running:
        expert, x = running.expert("expert.0"), torch.ones(4, HIDDEN)
        assert (expert(x) == 0).any()
        assert torch.equal(expert.eval()(x), x)
        assert (expert.train()(x) == 0).any()


def test_urgent_calls_are_computed_first():
    order, busy, go_on = [], threading.Event(), threading.Event()

    class Recorded(Block):
        def forward(self, x):
            if x.max() > 0:  # not while the schema is found out
                order.append(int(x.max()))
                busy.set()
                go_on.wait(60)
            return super().forward(x)

    with swarm(grid_uids([4]), make_expert=Recorded) as running:
        calls = [(0, 1, 0), (1, 2, 0), (2, 3, 7), (3, 4, 255)]
        experts = [running.expert(f"expert.{i}", priority=priority, forward_timeout=60) for i, _, priority in calls]
        threads = []
        for expert, (i, value, _) in zip(experts, calls, strict=True):
            x = torch.full((1, HIDDEN), float(value))
            threads.append(threading.Thread(target=expert, args=(x,)))
            threads[-1].start()
            if i == 0:
                assert busy.wait(60)
            wait_until(lambda i=i: running.server.counters()["requests"] == i + 1, 60, "the request arrived")
        go_on.set()
        for thread in threads:
            thread.join(60)
    assert order == [1, 4, 3, 2]
    for wrong in (-1, 256, 1.5):
        with pytest.raises(errors.InvalidArgument, match="priority"):
            lib.RemoteExpert("expert.0", priority=wrong)


def _dropout_backend(uid, module, **kwargs):
    module.scale = nn.Parameter(torch.ones(1))
    return sgd_backend(uid, module, **kwargs)


def test_large_tensors_of_several_kinds():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, HIDDEN)

        def forward(self, x, ids, *, shift):
            hidden = x * 2 + self.table(ids) + shift
            return {"hidden": hidden, "pair": (ids + 1, hidden.sum(-1))}

    def make_backend(uid, module, **kwargs):
        return sgd_backend(
            uid,
            module,
            args_schema=(lib.BatchTensorProto(HIDDEN), lib.BatchTensorProto(dtype=torch.int64)),
            kwargs_schema={"shift": lib.BatchTensorProto(HIDDEN)},
            max_batch_size=100_000,
        )

    with swarm(["expert.0"], make_expert=Mixed, make_backend=make_backend) as running:
        rows = 50_000  # 3.2 MB a tensor: several chunks, several windows of credit
        x, shift = torch.randn(rows, HIDDEN, requires_grad=True), torch.randn(rows, HIDDEN)
        ids = torch.randint(0, 50, (rows,))
        local = running.local["expert.0"]
        got, want = running.expert("expert.0")(x, ids, shift=shift), local(x, ids, shift=shift)
        assert_close(got["hidden"], want["hidden"], 1e-6)
        assert_close(got["pair"][1], want["pair"][1], 1e-6)
        assert torch.equal(got["pair"][0], ids + 1)
        assert isinstance(got["pair"], tuple)
        (got["hidden"].sum() + 3 * got["pair"][1].sum()).backward()
        assert_close(x.grad, torch.full_like(x, 8.0), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_travel_as_they_are(dtype):
    schema = (lib.BatchTensorProto(HIDDEN, dtype=dtype),)
    with swarm(["expert.0"], make_expert=lambda: Block().to(dtype), args_schema=schema) as running:
        x = torch.randn(5, HIDDEN, dtype=dtype, requires_grad=True)
        y = running.expert("expert.0")(x)
        assert y.dtype == dtype
        assert torch.equal(y, running.local["expert.0"](x))
        y.sum().backward()
        assert x.grad.dtype == dtype


def test_scripted_module_is_served_like_any_other():
    with swarm(["expert.0"], make_expert=lambda: torch.jit.script(Block())) as running:
        x = torch.randn(3, HIDDEN, requires_grad=True)
        y = running.expert("expert.0")(x)
        assert_close(y, running.local["expert.0"](x), 1e-6)
        y.sum().backward()
        assert running.backends["expert.0"].updates == 1


def test_zero_rows_need_no_call(blocks):
    before = blocks.server.counters()["requests"]
    x = torch.randn(0, HIDDEN, requires_grad=True)
    y = blocks.expert("expert.2")(x)
    assert y.shape == (0, HIDDEN)
    y.sum().backward()
    assert blocks.server.counters()["requests"] == before


def test_info_speaks_the_original_vocabulary(blocks):
    info = blocks.expert("expert.2").info
    assert info["keyword_names"] == []
    assert info["outputs_schema"] == lib.BatchTensorProto(HIDDEN)
    assert info["forward_schema"] == ((lib.BatchTensorProto(HIDDEN),), {})


def test_key_is_asked_for_when_only_the_address_is_known(blocks):
    expert = lib.RemoteExpert("expert.3", "127.0.0.1", blocks.server.port)
    assert_close(expert(torch.ones(1, HIDDEN)), blocks.local["expert.3"](torch.ones(1, HIDDEN)), 1e-6)


def test_a_server_that_came_back_with_another_key_is_asked_again(caplog):
    def serve(port):
        server = lib.TesseractServer(None, {"expert.0": sgd_backend("expert.0", Block())}, port=port)
        server.start(block=False)
        return server

    first = serve(0)
    expert = lib.RemoteExpert("expert.0", "127.0.0.1", first.port, forward_timeout=10)
    expert(torch.ones(1, HIDDEN))
    first.shutdown()
    second = serve(first.port)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert expert(torch.ones(1, HIDDEN)).shape == (1, HIDDEN)
            break
        except (errors.PeerUnreachable, errors.ShuttingDown):
            assert time.monotonic() < deadline
    assert "another key than before" in caplog.text
    second.shutdown()


def test_a_wrong_key_never_connects(blocks):
    expert = lib.RemoteExpert(
        "expert.3", "127.0.0.1", blocks.server.port, key=blocks.network.public_key, forward_timeout=10
    )
    with pytest.raises(errors.PeerUnreachable, match=r"info of expert 'expert.3' on server 127.0.0.1:\d+"):
        expert(torch.ones(1, HIDDEN))


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, r"expected arguments"),
        ((torch.ones(1, HIDDEN),), {"extra": torch.ones(1)}, r"got .*extra"),
        ((torch.ones(1, HIDDEN + 1),), {}, rf"expected float32\[\*, {HIDDEN}\], got float32\[\*, {HIDDEN + 1}\]"),
        ((torch.ones(1, HIDDEN, dtype=torch.float64),), {}, "got float64"),
        ((torch.tensor(1.0),), {}, "expected float32"),
        ((5,), {}, "expected a tensor, got int"),
    ],
)
def test_calls_that_do_not_fit_the_schema_say_why(blocks, args, kwargs, text):
    with pytest.raises(errors.SchemaMismatch, match=text):
        blocks.expert("expert.2")(*args, **kwargs)
    with pytest.raises(TypeError):  # as in the original
        blocks.expert("expert.2")(*args, **kwargs)


def test_more_rows_than_a_batch_may_have():
    with swarm(["expert.0"], max_batch_size=4) as running:
        expert = running.expert("expert.0")
        with pytest.raises(errors.SchemaMismatch, match=r"expected 1 to 4 rows \(max_batch_size\), got 5"):
            expert(torch.ones(5, HIDDEN))
        assert expert(torch.ones(4, HIDDEN)).shape == (4, HIDDEN)


@pytest.mark.parametrize("uid", ["", ".1", "expert.", "expert.01", "expert.x", "a b", "x" * 129, "expert.-1"])
def test_uids_that_nobody_could_call_are_refused(uid):
    with pytest.raises(errors.InvalidArgument, match="uid"):
        sgd_backend(uid, Block())


def test_server_arguments_are_checked():
    backend = sgd_backend("expert.0", Block())
    with pytest.raises(errors.InvalidArgument, match="port"):
        lib.TesseractServer(None, {"expert.0": backend}, port=70_000)
    with pytest.raises(errors.InvalidArgument, match="insecure"):
        lib.TesseractServer(None, {"expert.0": backend}, addr="0.0.0.0", insecure=True)
    with pytest.raises(errors.InvalidArgument, match="call it encrypted"):
        lib.TesseractServer(lib.TesseractNetwork(port=0), {"expert.0": backend}, insecure=True)
    with pytest.raises(errors.InvalidArgument, match="expert_backends"):
        lib.TesseractServer(None, {})
    with pytest.raises(errors.InvalidArgument, match="names a backend"):
        lib.TesseractServer(None, {"other": backend})
    if not torch.cuda.is_available():
        with pytest.raises(errors.InvalidArgument, match="no CUDA device"):
            lib.TesseractServer(None, {"expert.0": backend}, device="cuda")


def test_a_port_in_use_is_named():
    backend = sgd_backend("expert.0", Block())
    with lib.TesseractServer(None, {"expert.0": backend}, port=0) as server:
        second = lib.TesseractServer(None, {"expert.0": sgd_backend("expert.0", Block())}, port=server.port)
        with pytest.raises(errors.InvalidArgument, match=rf"127.0.0.1:{server.port}.*in use"):
            second.start(block=False)


def test_unencrypted_servers_are_loopback_only_and_work():
    backend = sgd_backend("expert.0", Block())
    with lib.TesseractServer(None, {"expert.0": backend}, port=0, insecure=True) as server:
        expert = lib.RemoteExpert("expert.0", "127.0.0.1", server.port, insecure=True)
        assert expert(torch.ones(2, HIDDEN)).shape == (2, HIDDEN)


def test_get_experts_finds_who_serves(blocks):
    found = blocks.network.get_experts(["expert.0", "expert.9", "nobody"])
    assert found[1] is None
    assert found[2] is None
    assert found[0](torch.ones(1, HIDDEN)).shape == (1, HIDDEN)
