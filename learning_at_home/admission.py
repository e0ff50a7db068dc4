"""Who may take part in a network: everybody, or the nodes that its run's owner gave a certificate.

::

    owner_seed = os.urandom(32)                         # the owner's secret; public_key_of(owner_seed) is for all
    certificate = issue_certificate(owner_seed, node_key, lifetime=86400)
    TesseractNetwork(..., identity=seed, admission=Admission.certificate(owner_key, certificate))
"""

from __future__ import annotations

import math
import time

from learning_at_home.errors import InvalidArgument

__all__ = ["Admission", "issue_certificate", "public_key_of"]

CERTIFICATE_BYTES = 72
_LIFETIME_MOST = 10 * 365 * 86400.0
_NETWORK_ID = "learning_at_home"


class Admission:
    """Whom a node talks to, and what it shows to be talked to. Make one with `open` or `certificate`."""

    def __init__(self, owner_key: bytes | None, own_certificate: bytes):
        self.owner_key = owner_key
        self.own_certificate = own_certificate

    @classmethod
    def open(cls) -> Admission:
        """Everybody may take part. Strangers are held in bounds by limits per subnet: of new keys a second, of
        contacts in tables and results, of bytes they may store."""
        return cls(None, b"")

    @classmethod
    def certificate(cls, owner_key: bytes, certificate: bytes) -> Admission:
        """Only nodes with a valid certificate of the run's owner may take part.

        Others get no answer but an error; their addresses and records are passed on to nobody.

        Args:
            owner_key: the owner's public key, 32 bytes (see `public_key_of`); all nodes of a run name the same.
            certificate: this node's own, from `issue_certificate` or ``learning-at-home admission issue``.

        Raises:
            InvalidArgument: a key or a certificate of a wrong length.
        """
        _checked("owner_key", owner_key, 32)
        _checked("certificate", certificate, CERTIFICATE_BYTES)
        return cls(owner_key, certificate)

    @property
    def is_open(self) -> bool:
        """True if everybody may take part."""
        return self.owner_key is None

    def check(self, network_id: str, node_key: bytes) -> None:
        """Raise InvalidArgument unless the certificate is the owner's, for this node and network, and still valid."""
        if self.owner_key is None:
            return
        from learning_at_home import _core

        expiry_ms = _core.check_certificate(self.owner_key, network_id, node_key, self.own_certificate)
        if expiry_ms is None:
            raise InvalidArgument(
                f"admission: the certificate is not one of owner {self.owner_key.hex()} for node {node_key.hex()} "
                f"in network {network_id!r}; a node keeps its key with identity="
            )
        if expiry_ms <= time.time() * 1000:
            raise InvalidArgument(f"admission: the certificate expired {time.time() - expiry_ms / 1000:.0f} s ago")

    def renewed(self, certificate: bytes, network_id: str, node_key: bytes) -> Admission:
        """The same with a later certificate; raises InvalidArgument as `check` does, or if this is open to all."""
        if self.owner_key is None:
            raise InvalidArgument("certificate: this network is open; there is nothing to renew")
        later = Admission.certificate(self.owner_key, certificate)
        later.check(network_id, node_key)
        return later

    def __repr__(self) -> str:
        return "Admission.open()" if self.owner_key is None else f"Admission.certificate({self.owner_key.hex()}, ...)"


def issue_certificate(
    owner_seed: bytes, node_key: bytes, lifetime: float = 86400.0, network_id: str = _NETWORK_ID
) -> bytes:
    """Let a node take part in a run for `lifetime` seconds from now: its certificate, 72 bytes, no secret.

    Args:
        owner_seed: the 32-byte seed of the owner's key. Secret: who has it decides who takes part.
        node_key: `TesseractNetwork.public_key` of the node.
        lifetime: seconds; a certificate cannot be taken back before.
        network_id: of the run.

    Raises:
        InvalidArgument: keys that are not 32 bytes, a lifetime that is not above 0 and at most ten years.
    """
    from learning_at_home import _core

    _checked("owner_seed", owner_seed, 32)
    _checked("node_key", node_key, 32)
    if not (math.isfinite(lifetime) and 0 < lifetime <= _LIFETIME_MOST):
        raise InvalidArgument(f"lifetime: expected seconds above 0 and at most ten years, got {lifetime}")
    return bytes(_core.issue_certificate(owner_seed, network_id, node_key, int((time.time() + lifetime) * 1000)))


def public_key_of(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte seed, of a node or of a run's owner."""
    from learning_at_home import _core

    _checked("seed", seed, 32)
    return bytes(_core.public_key(seed))


def checked_admission(admission: Admission | None) -> Admission:
    """The argument `admission` of `TesseractNetwork`; None is open."""
    if admission is None:
        return Admission.open()
    if not isinstance(admission, Admission):
        raise InvalidArgument(f"admission: expected Admission.open() or Admission.certificate(...), got {admission!r}")
    return admission


def _checked(argument: str, value: bytes, length: int) -> None:
    if not isinstance(value, bytes) or len(value) != length:
        got = f"{len(value)} bytes" if isinstance(value, bytes) else f"{type(value).__name__}"
        raise InvalidArgument(f"{argument}: expected {length} bytes, got {got}")
