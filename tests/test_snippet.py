"""The original's README snippet, and its vocabulary, with `import learning_at_home as lib`."""

import pytest
import torch
from torch import nn

import learning_at_home as lib


class NetworkBlock(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.layer = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.relu(self.layer(x))


@pytest.mark.parametrize("served", [1, 2, 3, 12])
def test_readme_snippet(served):
    width = 64
    root_node = lib.TesseractNetwork(port=0, start=True)
    root_port = root_node.port
    expert_uids = [f"expert.{i}.{31 - 2 * i}" for i in range(served)]

    experts = {}
    for expert_uid in expert_uids:
        expert = torch.jit.script(NetworkBlock(width))
        experts[expert_uid] = lib.ExpertBackend(
            name=expert_uid,
            expert=expert,
            opt=torch.optim.Adam(expert.parameters(), amsgrad=True),
            args_schema=(lib.BatchTensorProto(width),),
            outputs_schema=lib.BatchTensorProto(width),
            max_batch_size=2048,
            pool_size=8,
        )
    runtime = lib.TesseractServer(
        lib.TesseractNetwork(("127.0.0.1", root_port), port=0, start=True),
        experts,
        port=0,
        conn_handler_processes=64,
        sender_threads=1,
        device=torch.device("cpu"),
    )
    runtime.start(block=False)

    network = lib.TesseractNetwork(("127.0.0.1", root_port), port=0, start=True)
    dmoe = lib.GatingFunction(in_features=width, grid_size=[32, 32], k_best=4, network=network, uid_prefix="expert")
    average_out = dmoe(torch.randn(32, width))
    average_out.sum().backward()

    assert average_out.shape == (32, width)
    assert dmoe.proj.weight.grad is not None
    assert dmoe.last_stats.forward_failed == 0
    assert sum(backend.updates for backend in experts.values()) == dmoe.last_stats.forward_calls > 0
    runtime.shutdown()
    for node in (network, runtime.network, root_node):
        node.shutdown()


def test_old_arguments_are_accepted():
    with lib.TesseractNetwork(port=0) as network:
        gate = lib.GatingFunction(
            in_features=4, grid_size=[2], network=network, k_best=1, num_workers=8, expert_padding=None
        )
        assert set(dict(gate.named_parameters())) == {"proj.weight", "proj.bias"}
    module = NetworkBlock(4)
    backend = lib.ExpertBackend(
        "expert.0", module, torch.optim.SGD(module.parameters(), 0.1), args_schema=(lib.BatchTensorProto((4,)),)
    )
    lib.TesseractRuntime({"expert.0": backend}, prefetch_batches=64, sender_threads=4)
    assert backend.outputs_schema == lib.BatchTensorProto(4)


def test_task_pools_serve_this_process_too():
    module = NetworkBlock(4)
    backend = lib.ExpertBackend(
        "expert.0", module, torch.optim.SGD(module.parameters(), 0.1), args_schema=(lib.BatchTensorProto(4),)
    )
    runtime = lib.TesseractRuntime({"expert.0": backend})
    runtime.start()
    forward, backward = backend.get_pools()
    x = torch.randn(3, 4)
    want = module(x).detach()
    (out,) = forward.submit_task(x).result(timeout=20)
    assert torch.equal(out, want)
    (grad,) = backward.submit_task(x, torch.ones(3, 4)).result(timeout=20)
    assert grad.shape == x.shape
    assert backend.updates == 1
    with pytest.raises(lib.errors.SchemaMismatch, match="expected 1 tensors, got 2"):
        forward.submit_task(x, x)
    late = forward.submit_task(x, timeout=0.0)
    with pytest.raises(lib.errors.DeadlineExceeded):
        late.result()
    assert runtime.shutdown(timeout=20)
    with pytest.raises(lib.errors.ShuttingDown):
        forward.submit_task(x)
    with pytest.raises(lib.errors.InvalidArgument, match="no TesseractRuntime"):
        lib.TaskPool(lambda x: [x], lib.BatchTensorProto(4), lib.BatchTensorProto(4), uid="lonely").submit_task(x)


@pytest.mark.parametrize("name", ["PickleSerializer", "SharedArrays", "SharedFuture", "run_and_await_k", "Connection"])
def test_names_that_are_gone_say_what_replaced_them(name):
    with pytest.raises(AttributeError, match=rf"no {name}: \w+"):
        getattr(lib, name)


def test_unknown_names_are_ordinary_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        lib.Nothing  # noqa: B018


def test_nesting_follows_sorted_keys():
    structure = {"b": [1, (2,)], "a": 3}
    flat = list(lib.nested_flatten(structure))
    assert flat == [3, 1, 2]
    assert lib.nested_pack(flat, structure) == structure
    assert lib.nested_map(lambda x: x + 1, structure) == {"b": [2, (3,)], "a": 4}
    assert not lib.nested_compare(structure, {"b": [1, 2], "a": 3})
    with pytest.raises(ValueError, match="more"):
        lib.nested_pack([1, 2, 3, 4], structure)
    with pytest.raises(ValueError, match="fewer"):
        lib.nested_pack([1, 2], structure)
