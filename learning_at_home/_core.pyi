"""The bindings of csrc/bindings. Their types are checked at run time, by pybind11."""

from typing import Any

def __getattr__(name: str) -> Any: ...
