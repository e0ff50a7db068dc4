"""Tensors in every codec through a real server: what is lost is within what `csrc/codecs/codec.hpp` promises."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import wait_until
from local_swarm import HIDDEN, assert_close, grid_uids, sgd_backend, swarm
from torch import Tensor, nn

import learning_at_home as lib
from learning_at_home import errors
from learning_at_home.client.codec import (
    AUTO_LEVELS,
    AUTO_MARGIN,
    MEASURED_BYTES,
    CodecChoice,
    LinkSpeed,
    decode,
    encode,
)
from learning_at_home.client.transport import FORWARD, CallOutcome, ExpertCall

LOSSY = ["bf16", "fp16", "int8"]
BLOCK = 64


def coded(codec: str, x: Tensor) -> Tensor:
    """What the codec makes of a tensor, in torch."""
    if codec == "bf16":
        return x.bfloat16().float()
    if codec == "fp16":
        return x.half().float()
    if codec != "int8":
        return x
    flat = x.flatten()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % BLOCK)]).view(-1, BLOCK)
    exact = (blocks.abs().amax(1, keepdim=True) / 127).view(torch.int32)
    scale = ((exact + 0xFFFF) >> 16 << 16).view(torch.float32)  # the next bfloat16
    values = torch.where(scale > 0, torch.round(blocks / scale) * scale, 0.0)
    return values.flatten()[: len(flat)].view(x.shape)


def bound(codec: str, x: Tensor) -> Tensor:
    """The largest error that codec.hpp allows for each element."""
    if codec == "bf16":
        return x.abs() * 2**-8
    if codec == "fp16":
        return torch.where(x.abs() < 2**-14, 2**-25, x.abs() * 2**-11)
    if codec != "int8":
        return torch.zeros_like(x)
    flat = x.flatten().abs()
    blocks = torch.cat([flat, flat.new_zeros(-len(flat) % BLOCK)]).view(-1, BLOCK)
    return (blocks.amax(1, keepdim=True) / 252).expand_as(blocks).flatten()[: len(flat)].view(x.shape)


def assert_within(codec: str, got: Tensor, want: Tensor) -> None:
    """`got` is `want` through the codec, give or take the rounding of another order of sums."""
    allowed = bound(codec, want) * 1.001 + 1e-6 * want.abs().max()
    assert got.shape == want.shape
    assert ((got - want).abs() <= allowed).all(), ((got - want).abs() / allowed).max()


class Passing(nn.Module):
    """Returns its inputs, times one; two floats and an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, a: Tensor, b: Tensor, *, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return a * self.scale, b * self.scale, ids


def passing_backend(uid: str, module: nn.Module, **kwargs: object) -> lib.ExpertBackend:
    rows = lib.BatchTensorProto(HIDDEN)
    ids = {"ids": lib.BatchTensorProto(3, dtype=torch.int64)}
    return sgd_backend(uid, module, args_schema=(rows, rows), kwargs_schema=ids, **kwargs)


@pytest.fixture(scope="module")
def blocks():
    with swarm(grid_uids([4]), max_batch_size=100_000) as running:
        yield running


@pytest.fixture(scope="module")
def passing():
    with swarm(["expert.0"], make_expert=Passing, make_backend=passing_backend) as running:
        yield running


@pytest.mark.parametrize("codec", ["raw", *LOSSY])
@pytest.mark.parametrize("magnitude", [1e-12, 1e-3, 1.0, 1e4])
def test_native_codecs_are_those_of_torch(codec, magnitude):
    for size in ((0,), (1,), (64,), (65, 3)):
        x = torch.randn(size) * magnitude
        wire = encode(codec, x)
        assert torch.equal(decode(codec, wire, size), coded(codec, x))


def test_native_codecs_take_only_what_fits():
    with pytest.raises(errors.InvalidArgument, match="codec"):
        encode("auto", torch.ones(3))
    with pytest.raises(errors.InvalidArgument, match="tensor: expected a contiguous float32"):
        encode("bf16", torch.ones(4, 4).T[1:])
    with pytest.raises(errors.InvalidArgument, match="tensor: expected a contiguous float32"):
        encode("bf16", torch.ones(3, dtype=torch.int64))
    with pytest.raises(errors.InvalidArgument, match=r"wire: expected the uint8 bytes of float32\[4\] as bf16, got 6"):
        decode("bf16", encode("bf16", torch.ones(3)), (4,))


@pytest.mark.parametrize("codec", ["raw", *LOSSY])
def test_forward_gradients_and_updates_are_those_of_the_coded_tensors(codec):
    with swarm(["expert.0"]) as running:
        expert, local = running.expert("expert.0", codec=codec), copy.deepcopy(running.local["expert.0"])
        x, grad = torch.randn(37, HIDDEN, requires_grad=True), torch.randn(37, HIDDEN) * 1e-6
        y = expert(x)
        y.backward(grad)
        x_local = coded(codec, x.detach()).requires_grad_()
        y_local = local(x_local)
        y_local.backward(coded(codec, grad))
        assert_within(codec, y.detach(), y_local.detach())
        assert_within(codec, x.grad, x_local.grad)
        served = running.backends["expert.0"].expert
        for p, p_local in zip(served.parameters(), local.parameters(), strict=True):
            assert_close(p, (p_local - 0.1 * p_local.grad).detach(), 1e-6)


@pytest.mark.parametrize("codec", LOSSY)
def test_what_is_lost_is_within_the_bound_and_something_is(passing, codec):
    a, b = torch.randn(50, HIDDEN), torch.randn(50, HIDDEN) * 1e-3
    with torch.no_grad():
        got_a, got_b, _ = passing.expert("expert.0", codec=codec)(a, b, ids=torch.zeros(50, 3, dtype=torch.int64))
    for sent, got in ((a, got_a), (b, got_b)):
        assert_within(codec, got, coded(codec, sent))  # the way back of what arrived there
        assert ((got - sent).abs() <= bound(codec, sent) + bound(codec, coded(codec, sent))).all()
        assert not torch.equal(got, sent)


@pytest.mark.parametrize(
    ("codec", "of_a", "of_b", "of_results"),
    [
        ("bf16", "bf16", "bf16", "bf16"),
        (["raw", "bf16"], "raw", "bf16", "raw"),
        (["fp16", "raw", "int8"], "fp16", "raw", "fp16"),
        ({1: "int8"}, "raw", "int8", "raw"),
        ({0: "int8", 1: "bf16", "results": "raw"}, "int8", "bf16", "raw"),
        ({"results": "bf16"}, "raw", "raw", "bf16"),
    ],
)
def test_each_tensor_has_its_own_codec_and_integers_none(passing, codec, of_a, of_b, of_results):
    a, b = torch.randn(9, HIDDEN, requires_grad=True), torch.randn(9, HIDDEN)
    ids = torch.randint(-(2**60), 2**60, (9, 3))
    with torch.no_grad():
        passing.backends["expert.0"].expert.scale.fill_(1.0)
    got_a, got_b, got_ids = passing.expert("expert.0", codec=codec)(a, b, ids=ids)
    assert torch.equal(got_a, coded(of_results, coded(of_a, a)))
    assert torch.equal(got_b, coded(of_results, coded(of_b, b)))
    assert torch.equal(got_ids, ids)
    grad = torch.randn(9, HIDDEN)
    got_a.backward(grad)
    assert torch.equal(a.grad, coded(of_results, coded(of_results, grad)))


@pytest.mark.parametrize(("codec", "element"), [("raw", 4), ("bf16", 2), ("fp16", 2), ("int8", 1 + 2 / BLOCK)])
def test_bytes_on_the_wire_shrink(blocks, codec, element):
    rows = 64 * 1024  # 4 MiB a tensor: several chunks, more than a window of credit in some codecs
    expert, x, y = blocks.expert("expert.1"), torch.randn(rows, HIDDEN), torch.empty(rows, HIDDEN)
    call = ExpertCall(expert.address, FORWARD, [x], [y], codecs=[codec], result_codec=codec)
    (outcome,) = expert.transport.call_many([call], 60.0)
    assert outcome.ok
    assert outcome.wire_bytes == 2 * rows * HIDDEN * element
    with torch.no_grad():
        assert_within(codec, y, blocks.local["expert.1"](coded(codec, x)))


def test_tensors_of_other_dtypes_travel_raw():
    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(HIDDEN, dtype=torch.float64))

        def forward(self, x):
            return x + self.shift

    schema = (lib.BatchTensorProto(HIDDEN, dtype=torch.float64),)
    with swarm(["expert.0"], make_expert=Double, args_schema=schema) as running:
        x = torch.randn(5, HIDDEN, dtype=torch.float64, requires_grad=True)
        y = running.expert("expert.0", codec="int8")(x)
        grad = torch.randn_like(y)
        y.backward(grad)
        assert torch.equal(y, x)
        assert torch.equal(x.grad, grad)


@pytest.mark.parametrize("codec", LOSSY)
def test_gates_take_a_codec(blocks, codec):
    gate = blocks.gate([4], k_best=2, codec=codec)
    x = torch.randn(20, HIDDEN, requires_grad=True)
    with torch.no_grad():
        y = gate(x)
        gate.codec = CodecChoice.parse("raw")
        exact = gate(x)
    assert_close(y, exact, 0.02)
    assert not torch.equal(y, exact)
    gate.codec = CodecChoice.parse(codec)
    gate(x).sum().backward()
    assert gate.last_stats.failed == 0
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("codec", ["zip", "RAW", "", 3, None, ["raw", "zip"], [None], {0: "zip"}, {"results": 1}])
def test_unknown_names_are_refused(passing, codec):
    with pytest.raises(errors.InvalidArgument, match="codec: expected"):
        passing.expert("expert.0", codec=codec)
    with pytest.raises(errors.InvalidArgument, match="codec: expected"):
        lib.GatingFunction(in_features=4, grid_size=[2], network=passing.network, k_best=1, codec=codec)


@pytest.mark.parametrize("key", [-1, "inputs", 0.5])
def test_unknown_keys_are_refused(key):
    with pytest.raises(errors.InvalidArgument, match="codec: expected positions"):
        CodecChoice.parse({key: "bf16"})


def test_positions_that_the_expert_does_not_have_are_refused(passing):
    a, ids = torch.randn(2, HIDDEN), torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(errors.InvalidArgument, match="codec: names input tensor 3, the expert takes 3"):
        passing.expert("expert.0", codec={3: "bf16"})(a, a, ids=ids)


def measured(*speeds: float) -> LinkSpeed:
    link = LinkSpeed()
    for speed in speeds:
        link.add(1 << 20, (1 << 20) / speed)
    return link


def test_auto_is_raw_until_a_large_call_was_measured():
    link = LinkSpeed()
    assert link.code("auto") == 0
    link.add(MEASURED_BYTES - 1, 100.0)
    link.add(1 << 20, 0.0)
    link.add(1 << 20, -1.0)  # a server's own times may exceed what we saw
    assert link.speed is None
    assert link.codec == "raw"
    link.add(MEASURED_BYTES, 100.0)
    assert link.codec == "int8"
    assert [link.code(name) for name in ("raw", "bf16", "fp16", "int8", "auto")] == [0, 1, 2, 3, 3]


@pytest.mark.parametrize(("speed", "codec"), [(5e9, "raw"), (125e6, "bf16"), (30e6, "bf16"), (5e6, "int8")])
def test_auto_goes_by_the_speed_of_the_link(speed, codec):
    assert measured(speed).codec == codec
    assert measured(*[speed] * 5).speed == pytest.approx(speed)


@pytest.mark.parametrize("level", [0, 1])
def test_auto_does_not_flap_near_a_limit(level):
    names, least = [name for name, _ in AUTO_LEVELS], AUTO_LEVELS[level][1]
    near = [least * factor for factor in (0.9, 1.1, 0.85, 1.2)] * 10
    quick, slow = measured(least * AUTO_MARGIN * 1.5), measured(least / AUTO_MARGIN / 1.5)
    assert (quick.codec, slow.codec) == (names[level], names[level + 1])
    for speed in near:
        for link in (quick, slow):
            link.add(1 << 20, (1 << 20) / speed)
        assert (quick.codec, slow.codec) == (names[level], names[level + 1])


def test_auto_follows_a_link_that_changes():
    link = measured(*[2e9] * 5)
    for speed, codec in ((1e6, "int8"), (50e6, "bf16"), (4e9, "raw")):
        for _ in range(30):
            link.add(1 << 20, (1 << 20) / speed)
        assert link.codec == codec


def unmeasured_link(expert: lib.RemoteExpert) -> LinkSpeed:
    """The expert's link, without what other tests have shown of it."""
    expert.transport._links.pop(expert.address.peer, None)
    return expert.transport.link(expert.address.peer)


def test_calls_use_what_is_known_of_their_link(blocks):
    expert, x = blocks.expert("expert.2"), torch.randn(100, HIDDEN)

    def wire_bytes() -> int:
        call = ExpertCall(expert.address, FORWARD, [x], [torch.empty_like(x)], codecs=["auto"], result_codec="auto")
        (outcome,) = expert.transport.call_many([call], 60.0)
        return outcome.wire_bytes

    link = unmeasured_link(expert)
    assert wire_bytes() == 2 * x.nbytes
    link.add(1 << 20, 1.0)  # 1 MB/s
    assert link.codec == "int8"
    assert wire_bytes() < x.nbytes


def test_speed_is_bytes_over_the_time_that_they_travelled(blocks):
    expert = blocks.expert("expert.3")
    transport, peer = expert.transport, expert.address.peer
    wait_until(lambda: transport.round_trip(peer) is not None, 30.0, "a round trip")
    link, round_trip = unmeasured_link(expert), transport.round_trip(peer)
    measured = {"wire_bytes": 30_000_000, "peer": peer}
    transport._measure(
        [
            CallOutcome(None, 1.0, 2.0, 1, b"", elapsed=5.0, **measured),
            CallOutcome(None, 0.0, 1.0, 1, b"", elapsed=7.0 + round_trip, **measured),  # the longest on its way
            CallOutcome(None, 0.0, 1.0, 1, b"", elapsed=20.0, retried=1, **measured),
            CallOutcome(errors.Cancelled("late"), 0.0, 0.0, 0, b"", elapsed=30.0, **measured),
        ]
    )
    assert 10e6 * 6.0 / (6.0 + round_trip) <= link.speed <= 10e6 * 1.001


def test_auto_measures_the_link_by_its_own_calls(blocks):
    expert = blocks.expert("expert.3", codec="auto")
    link, x = unmeasured_link(expert), torch.randn(MEASURED_BYTES // (4 * HIDDEN), HIDDEN)
    wait_until(lambda: expert.transport.round_trip(expert.address.peer) is not None, 30.0, "a round trip")
    with torch.no_grad():
        expert(x[:10])
        assert link.speed is None  # too small
        wait_until(lambda: len(expert(x)) > 0 and link.speed is not None, 30.0, "a measured call")
    assert link.speed > 0
