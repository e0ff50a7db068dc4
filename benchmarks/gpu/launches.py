"""What one forward and one backward of a layer put on the device: kernels launched, and waits of the host."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

T = TypeVar("T")
RANGE = "counted here"
OURS = "lah::"  # the namespace of our kernels
PRODUCTS = re.compile(r"gemm|gemv|cutlass|nvjet|xmma|cublas|grouped|splitk", re.IGNORECASE)
WAITS = re.compile(r"^cu(da)?\w*Synchronize|^cudaMemcpy$|^cuMemcpy(HtoD|DtoH)(_v2)?$")


@dataclass
class Count:
    """Names with how often: kernels of ours, of matrix products, others (copies and fills too), and waits."""

    ours: Counter[str] = field(default_factory=Counter)
    products: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    def launched(self) -> int:
        """All kernels, copies and fills."""
        return self.ours.total() + self.products.total() + self.others.total()

    def line(self) -> str:
        """In one line; the names of ours and others, as it is they that one wants to be fewer."""
        kinds = {"ours": self.ours, "others": self.others, "waits": self.waits}
        words = [f"{kind} {count.total()}{_listed(count)}" for kind, count in kinds.items()]
        return ", ".join([*words, f"matrix products {self.products.total()}"])


def count(events: Iterable[Any]) -> Count:
    """Sort what torch's profiler saw; waits only within the range counted, the profiler's own lie outside."""
    events = list(events)
    result = Count()
    ranges = [e.time_range for e in events if e.name == RANGE and e.device_type == DeviceType.CPU]
    for event in events:
        name = event.name
        if event.device_type != DeviceType.CPU:
            if name == RANGE:  # the range is also shown on the device
                continue
            kind = result.ours if OURS in name else result.products if PRODUCTS.search(name) else result.others
            kind[name] += 1
        elif WAITS.search(name):
            within = any(r.start <= event.time_range.start <= r.end for r in ranges)
            result.waits[name] += within
    return result


def counted(work: Callable[[], T], device: torch.device) -> tuple[T, Count]:
    """Run it once under the profiler; (its result, what it launched)."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
        torch.cuda.synchronize(device)
    with profile(activities=activities) as profiler:
        with record_function(RANGE):
            result = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return result, count(profiler.events())


def _listed(names: Counter[str]) -> str:
    short = [f"{times} × {_short(name)}" for name, times in names.most_common() if times]
    return f" ({', '.join(short)})" if short else ""


def _short(name: str) -> str:
    return re.sub(r"<.*|\(.*", "", name.replace("(anonymous namespace)::", "")).removeprefix("void ").split("::")[-1]
