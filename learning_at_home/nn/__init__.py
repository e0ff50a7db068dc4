"""Modules to build models and experts from."""

from learning_at_home.nn.expert_parallel import ExpertParallelMoE, data_parallel
from learning_at_home.nn.experts import DeterministicDropoutExpert, FeedForwardExpert, NopExpert, TransformerExpert
from learning_at_home.nn.local_mixture import LocalMixture
from learning_at_home.nn.moe import Experts, MoE, RouterLosses
from learning_at_home.nn.registry import EXPERT_CLASSES, ExpertClass, find_expert_class, register_expert_class
from learning_at_home.nn.router import GridRouter, Router

__all__ = [
    "EXPERT_CLASSES",
    "DeterministicDropoutExpert",
    "ExpertClass",
    "ExpertParallelMoE",
    "Experts",
    "FeedForwardExpert",
    "GridRouter",
    "LocalMixture",
    "MoE",
    "NopExpert",
    "Router",
    "RouterLosses",
    "TransformerExpert",
    "data_parallel",
    "find_expert_class",
    "register_expert_class",
]
