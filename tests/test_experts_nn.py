"""Expert modules by name: what they compute, that servers train them, and how users add their own."""

from __future__ import annotations

import copy

import pytest
import torch
from local_swarm import assert_close
from torch import nn

import learning_at_home as lib
from learning_at_home.errors import InvalidArgument
from learning_at_home.nn import (
    EXPERT_CLASSES,
    DeterministicDropoutExpert,
    FeedForwardExpert,
    NopExpert,
    TransformerExpert,
    find_expert_class,
)

BUILT_IN = ["det_dropout", "ffn", "nop", "transformer"]


def samples(name: str, hidden: int, batch: int = 2) -> list[torch.Tensor]:
    protos = EXPERT_CLASSES[name].args_schema(hidden)
    return [
        torch.rand(batch, *proto.instance_size) < 0.8
        if proto.dtype == torch.bool
        else torch.randn(batch, *proto.instance_size)
        for proto in protos
    ]


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_experts_keep_shapes_and_can_be_scripted(name: str) -> None:
    expert = torch.jit.script(EXPERT_CLASSES[name].make(12))
    x, *rest = samples(name, 12)
    x.requires_grad_()
    out = expert(x, *rest)
    assert out.shape == x.shape
    out.sum().backward()
    assert x.grad is not None
    assert list(expert.parameters())  # an optimizer wants some


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_experts_train_on_a_server(name: str) -> None:
    torch.manual_seed(0)
    module = EXPERT_CLASSES[name].make(8)
    if name == "transformer":
        module.layer.dropout = module.layer.dropout1 = module.layer.dropout2 = nn.Identity()  # to compare with
        module.layer.self_attn.dropout = 0.0
    local = copy.deepcopy(module)
    args = EXPERT_CLASSES[name].args_schema(8)
    backend = lib.ExpertBackend("e.0", module, torch.optim.SGD(module.parameters(), lr=0.1), args_schema=args)
    with lib.TesseractServer(None, {"e.0": backend}, port=0) as server:
        remote = lib.RemoteExpert("e.0", port=server.port)
        x, *rest = samples(name, 8)
        given, x_local, x = x.clone(), x.clone().requires_grad_(), x.requires_grad_()
        want = local(x_local, *rest)
        got = remote(x, *rest)
        assert_close(got, want, 1e-5)
        want.square().sum().backward()
        got.square().sum().backward()
        assert torch.equal(x.detach(), given)  # the original's transformer wrote into it
        assert_close(x.grad, x_local.grad, 1e-4)
        assert backend.updates == 1
        for p, p_local in zip(module.parameters(), local.parameters(), strict=True):
            if p_local.grad is not None:
                torch.testing.assert_close(p, p_local - 0.1 * p_local.grad, rtol=1e-4, atol=1e-4)


def test_ffn_and_nop_compute_what_they_say() -> None:
    x = torch.randn(4, 6)
    assert NopExpert(6)(x).equal(x)
    expert = FeedForwardExpert(6, inner=3)
    for parameter in expert.layers[-1].parameters():
        nn.init.zeros_(parameter)
    assert expert(x).equal(x)  # residual
    with pytest.raises(ValueError, match="inner=0"):
        FeedForwardExpert(6, inner=0)


def test_transformer_is_the_papers() -> None:
    assert sum(p.numel() for p in TransformerExpert(1024).parameters()) == 8_399_872
    assert [TransformerExpert(hidden).layer.self_attn.num_heads for hidden in (64, 24, 7, 1)] == [16, 12, 7, 1]
    expert = TransformerExpert(8)
    out = expert(torch.randn(2, 5, 8))  # normalised last
    torch.testing.assert_close(out.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    assert not out.equal(expert(torch.randn(2, 5, 8)))


def test_deterministic_dropout_applies_the_mask_it_is_given() -> None:
    expert = DeterministicDropoutExpert(6, p=0.5)
    x, mask = torch.randn(4, 6), torch.rand(4, 6) < 0.5
    assert expert(x, mask).equal(expert.ffn(torch.where(mask, x / 0.5, 0.0)))
    assert expert(x, mask).equal(expert(x, mask))
    assert expert.eval()(x, mask).equal(expert.ffn(x))
    with pytest.raises(ValueError, match="p: expected 0 to 1, got 1"):
        DeterministicDropoutExpert(6, p=1)


def test_registering_a_class_of_ones_own() -> None:
    try:

        @lib.register_expert_class(
            "test_pair", lambda batch, hidden: (torch.empty(batch, 2), torch.empty(batch, hidden))
        )
        class Pair(nn.Module):
            def __init__(self, hidden: int) -> None:
                super().__init__()
                self.linear = nn.Linear(2, hidden)

            def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
                return self.linear(a) + b

        kind = find_expert_class("test_pair")
        assert isinstance(kind.make(5), Pair)
        assert [str(proto) for proto in kind.args_schema(5)] == ["float32[*, 2]", "float32[*, 5]"]
        lib.register_expert_class("test_pair", kind.sample_input)(Pair)  # once more, as a notebook does
        with pytest.raises(InvalidArgument, match=r"'test_pair' is taken by .*Pair"):
            lib.register_expert_class("test_pair", kind.sample_input)(NopExpert)
    finally:
        EXPERT_CLASSES.pop("test_pair", None)


def test_what_cannot_be_registered_is_told() -> None:
    with pytest.raises(InvalidArgument, match="name: expected a word"):
        lib.register_expert_class("two words", torch.empty)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        lib.register_expert_class("test_function", lambda batch, hidden: torch.empty(batch))(lambda hidden: None)
    with pytest.raises(InvalidArgument, match="ffn, nop, transformer, got 'fnn'"):
        find_expert_class("fnn")
    for wrong in (lambda batch, hidden: (), lambda batch, hidden: torch.empty(hidden, batch)):
        with pytest.raises(InvalidArgument, match="sample_input of expert class 'odd'"):
            lib.nn.ExpertClass("odd", NopExpert, wrong).args_schema(7)
