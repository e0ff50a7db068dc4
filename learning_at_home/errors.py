"""Every error this package raises on its own account. Each says who failed, at what, and what to do."""

from __future__ import annotations


class LearningAtHomeError(RuntimeError):
    """Base of all errors of expert calls and of the network."""


class ExpertNotFound(LearningAtHomeError):
    """The server does not serve this uid (any more)."""


class SchemaMismatch(LearningAtHomeError, TypeError):
    """Tensor count, dtype, shape or number of rows differ from the expert's schema."""


class RemoteTraceback(Exception):
    """The traceback of an expert's own error, as text from its server. The cause of an `ExpertError`."""

    def __init__(self, text: str):
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class ExpertError(LearningAtHomeError):
    """The expert's own code raised on its server; `traceback_text` holds the remote traceback."""

    traceback_text: str = ""


class Overloaded(LearningAtHomeError):
    """The server has no room for this call; `retry_after` is in seconds."""

    retry_after: float = 0.0


class DeadlineExceeded(LearningAtHomeError, TimeoutError):
    """No complete answer within the call's timeout."""


class PeerUnreachable(LearningAtHomeError, ConnectionError):
    """The server never answered, or has fallen silent."""


class Cancelled(LearningAtHomeError):
    """The call was given up by its caller."""


class ProtocolError(LearningAtHomeError):
    """The peer sent something that no correct peer sends."""


class ShuttingDown(LearningAtHomeError):
    """The server or the local client is closing."""


class InvalidArgument(LearningAtHomeError, ValueError):
    """An argument that cannot be served, named in the message."""


class NotFound(LearningAtHomeError, LookupError):
    """The network holds no such record."""


class Rejected(LearningAtHomeError):
    """The server refused a request's numbers: NaN, infinite, or a norm above a limit. Nothing was applied."""


class NotPermitted(LearningAtHomeError, PermissionError):
    """The server does not do this, or not for this caller's key."""


class NoExpertsAlive(LearningAtHomeError):
    """No expert answered for some tokens, and the gate was asked to raise (`on_empty="raise"`)."""


class NotFinite(LearningAtHomeError, ArithmeticError):
    """An expert's answer held NaN or infinity, and the gate was asked to look (`detect_anomalies=True`)."""


# Codes of csrc/base/error.hpp.
OK = 0
_CLASSES: dict[int, type[LearningAtHomeError]] = {
    1: ExpertNotFound,
    2: SchemaMismatch,
    3: ExpertError,
    4: Overloaded,
    5: DeadlineExceeded,
    6: PeerUnreachable,
    7: Cancelled,
    8: ProtocolError,
    9: ShuttingDown,
    10: InvalidArgument,
    11: NotFound,
    12: Rejected,
    13: NotPermitted,
}
CODES = {cls: code for code, cls in _CLASSES.items()}


def make_error(
    code: int, message: str, detail: str | bytes = "", retry_after_ms: int = 0, context: str = ""
) -> LearningAtHomeError:
    """Build the typed error of a code; `context` (peer, uid, phase) goes in front of the message."""
    text = f"{context}: {message}" if context else message
    detail = detail.decode("utf-8", "replace") if isinstance(detail, bytes) else detail
    error = _CLASSES.get(code, LearningAtHomeError)(text)
    if isinstance(error, ExpertError):
        error.traceback_text = detail
        error.__cause__ = RemoteTraceback(detail)
    if isinstance(error, Overloaded):
        error.retry_after = retry_after_ms / 1000
    return error
