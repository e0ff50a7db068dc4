"""Modules to build models and experts from."""

from learning_at_home.nn.experts import DeterministicDropoutExpert, FeedForwardExpert, NopExpert, TransformerExpert
from learning_at_home.nn.local_mixture import LocalMixture
from learning_at_home.nn.registry import EXPERT_CLASSES, ExpertClass, find_expert_class, register_expert_class

__all__ = [
    "EXPERT_CLASSES",
    "DeterministicDropoutExpert",
    "ExpertClass",
    "FeedForwardExpert",
    "LocalMixture",
    "NopExpert",
    "TransformerExpert",
    "find_expert_class",
    "register_expert_class",
]
