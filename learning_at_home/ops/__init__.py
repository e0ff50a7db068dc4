"""Choosing experts, sending tokens to them and mixing what comes back, as differentiable functions on CPU and
CUDA.

`schemas.py` is the table of contents, `reference.py` the specification. The compiled ops load with this
module; where there are none, the reference serves, with a warning.
"""

from .activation import swiglu
from .grouped import grouped_mm
from .library import load
from .movement import combine, dispatch
from .quantized import dequantize, dispatch_quantized
from .routing import Plan, Route, alive_bitmap, plan, route, route_grid

__all__ = [
    "Plan",
    "Route",
    "alive_bitmap",
    "combine",
    "dequantize",
    "dispatch",
    "dispatch_quantized",
    "grouped_mm",
    "plan",
    "route",
    "route_grid",
    "swiglu",
]

_library = load()  # the ops are defined as long as this lives
