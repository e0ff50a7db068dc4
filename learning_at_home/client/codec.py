"""How tensors travel: the codec of each, chosen by name or by the measured speed of the link.

Lossy codecs apply to float32; tensors of other dtypes always travel raw. What comes back for an element x:

- "raw": x.
- "bf16", half the bytes: off by at most 2^-8 |x|.
- "fp16", half the bytes: off by at most 2^-11 |x|, or 2^-25 where |x| < 2^-14. Infinite from 65520 on.
- "int8", 3.88 times fewer bytes: off by at most 1/252 of the largest magnitude among the 64 elements of its block.

NaN and infinities stay what they are; with "int8" they make their block NaN. A server computes with the tensors as they
arrive; backward calls send the inputs again, in the codec chosen then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from learning_at_home.errors import InvalidArgument

# Codes of csrc/codecs/codec.hpp, which documents the error bound of each.
CODES = {"raw": 0, "bf16": 1, "fp16": 2, "int8": 3}
AUTO = "auto"
RESULTS = "results"
NAMES = (*CODES, AUTO)

CodecArgument = str | Sequence[str] | Mapping[int | str, str]

# What "auto" takes on a link, by its least speed in bytes/s: encoding costs more than it saves above the first, and a
# link below the second (100 Mb/s) is worth four times fewer bytes.
AUTO_LEVELS = (("raw", 1e9), ("bf16", 12.5e6), ("int8", 0.0))
AUTO_MARGIN = 1.25  # a limit must be passed by so much before the choice changes: it shall not flap
MEASURED_BYTES = 256 << 10  # smaller calls say nothing about a link's speed
_MEMORY = 0.7  # weight of what was known against one more measurement


@dataclass(frozen=True)
class CodecChoice:
    """The codecs of one expert's calls: of its inputs by position, of results and gradients."""

    inputs: Mapping[int, str]
    other_inputs: str
    results: str

    @classmethod
    def parse(cls, codec: CodecArgument) -> CodecChoice:
        """Read a `codec` argument.

        Args:
            codec: a name for every tensor: "raw", "bf16", "fp16", "int8" or "auto"; or names by input tensor, as a
                sequence or as a dict from positions (arguments first, then keyword arguments, flat, from 0). Inputs
                that are not named go raw. A dict's "results" names the codec of results and of gradients, both ways;
                without it, and for a sequence, they take that of input 0.

        Raises:
            InvalidArgument: an unknown name or key.
        """
        if isinstance(codec, str):
            return cls({}, _checked(codec), codec)
        if isinstance(codec, Mapping):
            named = dict(codec)
            results = named.pop(RESULTS, None)
        elif isinstance(codec, Sequence):
            named, results = dict(enumerate(codec)), None
        else:
            raise InvalidArgument(f"codec: expected a name, a sequence or a dict of names, got {codec!r}")
        inputs: dict[int, str] = {}
        for key, name in named.items():
            if not isinstance(key, int) or key < 0:
                raise InvalidArgument(f"codec: expected positions of input tensors or {RESULTS!r} as keys, got {key!r}")
            inputs[key] = _checked(name)
        return cls(inputs, "raw", inputs.get(0, "raw") if results is None else _checked(results))

    def of(self, inputs: int, grads: int = 0) -> list[str]:
        """Names for a call's tensors: an expert's inputs, and after them output gradients in a backward call.

        Raises:
            InvalidArgument: an input is named that the expert does not have.
        """
        if self.inputs and max(self.inputs) >= inputs:
            raise InvalidArgument(f"codec: names input tensor {max(self.inputs)}, the expert takes {inputs}")
        return [self.inputs.get(i, self.other_inputs) for i in range(inputs)] + [self.results] * grads


RAW = CodecChoice({}, "raw", "raw")


class LinkSpeed:
    """What calls have shown of the link to one server.

    Attributes:
        speed: bytes/s both ways together, over recent large calls; None until one was measured.
        codec: what "auto" takes: raw until measured, then by `AUTO_LEVELS`.
    """

    def __init__(self) -> None:
        self.codec = "raw"
        self.speed: float | None = None
        self._bytes = self._seconds = 0.0

    def add(self, nbytes: int, seconds: float) -> None:
        """Count a call that moved `nbytes` in `seconds`, the server's own time left out."""
        if nbytes < MEASURED_BYTES or seconds <= 0:
            return
        self._bytes = _MEMORY * self._bytes + nbytes
        self._seconds = _MEMORY * self._seconds + seconds
        self.speed = self._bytes / self._seconds
        names = [name for name, _ in AUTO_LEVELS]
        fastest, slowest = _level(self.speed * AUTO_MARGIN), _level(self.speed / AUTO_MARGIN)
        self.codec = names[min(max(names.index(self.codec), fastest), slowest)]

    def code(self, name: str) -> int:
        """The code of a codec on this link."""
        return CODES[self.codec if name == AUTO else name]


def encode(codec: str, tensor: torch.Tensor) -> torch.Tensor:
    """The bytes, uint8 [n], as which a contiguous float32 CPU tensor travels."""
    from learning_at_home import _core

    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise InvalidArgument(
            f"tensor: expected a contiguous float32 CPU tensor, got {tensor.dtype} on {tensor.device}"
        )
    code = _code(codec)
    wire = torch.empty(_core.codec_bytes(code, tensor.numel()), dtype=torch.uint8)
    _core.encode(code, tensor.data_ptr(), tensor.numel(), wire.data_ptr())
    return wire


def decode(codec: str, wire: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The float32 tensor of this size that arrives as the bytes of `encode`."""
    from learning_at_home import _core

    code, tensor = _code(codec), torch.empty(tuple(size))
    if wire.dtype != torch.uint8 or not wire.is_contiguous() or wire.numel() != _core.codec_bytes(code, tensor.numel()):
        raise InvalidArgument(f"wire: expected the uint8 bytes of float32{list(size)} as {codec}, got {wire.numel()}")
    _core.decode(code, wire.data_ptr(), tensor.numel(), tensor.data_ptr())
    return tensor


def _code(codec: str) -> int:
    if codec not in CODES:
        raise InvalidArgument(f"codec: expected one of {', '.join(CODES)}, got {codec!r}")
    return CODES[codec]


def _level(speed: float) -> int:
    return next(i for i, (_, least) in enumerate(AUTO_LEVELS) if speed >= least)


def _checked(name: object) -> str:
    if not isinstance(name, str) or name not in NAMES:
        raise InvalidArgument(f"codec: expected one of {', '.join(NAMES)}, got {name!r}")
    return name
