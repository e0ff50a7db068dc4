"""Modules to build models and experts from."""

from learning_at_home.nn.experts import EXPERTS, FeedForwardExpert, NopExpert

__all__ = ["EXPERTS", "FeedForwardExpert", "NopExpert"]
