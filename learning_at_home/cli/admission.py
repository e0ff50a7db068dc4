"""``learning-at-home admission``: keys of a closed run, and the certificates that let nodes into it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

import learning_at_home as lib
from learning_at_home.admission import Admission, issue_certificate, public_key_of

app = typer.Typer(no_args_is_help=True, help="Keys of a closed run, and certificates that let nodes into it.")

KeyFile = Annotated[Path, typer.Argument(dir_okay=False, metavar="FILE", help="Holds a secret seed in hex.")]
Identity = Annotated[
    Path | None,
    typer.Option("--identity", dir_okay=False, metavar="FILE", help="The node's own key; made by admission make-key."),
]
OwnerKey = Annotated[
    str | None, typer.Option("--owner-key", metavar="HEX", help="Only nodes this key gave a certificate may take part.")
]
CertificateFile = Annotated[
    Path | None,
    typer.Option("--certificate", exists=True, dir_okay=False, metavar="FILE", help="This node's, by that owner."),
]


@app.command("make-key")
def make_key(file: KeyFile) -> None:
    """Make a key, of a node or of a run's owner: the secret goes to FILE, the public key is printed."""
    seed = os.urandom(32)
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise typer.BadParameter(f"cannot make {file}: {error.strerror}", param_hint="FILE") from error
    with os.fdopen(descriptor, "w") as out:
        out.write(seed.hex() + "\n")
    typer.echo(public_key_of(seed).hex())


@app.command("issue")
def issue(
    node_key: Annotated[str, typer.Argument(metavar="HEX", help="Public key of the node.")],
    owner: Annotated[Path, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="The owner's key file.")],
    days: Annotated[float, typer.Option(min=0.001, max=3650, help="Until it expires; it cannot be taken back.")] = 1.0,
) -> None:
    """Print a certificate that lets a node take part in the run of this owner."""
    key = _hex("HEX", node_key)
    try:
        certificate = issue_certificate(read_seed(owner, "--owner"), key, days * 86400)
    except lib.errors.InvalidArgument as error:
        raise typer.BadParameter(str(error)) from error
    typer.echo(certificate.hex())


def read_seed(file: Path, option: str) -> bytes:
    """The seed that `make-key` wrote."""
    try:
        return _hex(option, file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {file}: {error}", param_hint=option) from error


def admission_of(owner_key: str | None, certificate: Path | None) -> Admission:
    """What ``--owner-key`` and ``--certificate`` say; both or none."""
    if (owner_key is None) != (certificate is None):
        raise typer.BadParameter("--owner-key and --certificate go together")
    if owner_key is None or certificate is None:
        return Admission.open()
    try:
        own = bytes.fromhex(certificate.read_text().strip())
        return Admission.certificate(_hex("--owner-key", owner_key), own)
    except (OSError, ValueError, lib.errors.InvalidArgument) as error:
        raise typer.BadParameter(f"{certificate}: {error}", param_hint="--certificate") from error


def _hex(option: str, text: str) -> bytes:
    try:
        value = bytes.fromhex(text.strip())
    except ValueError:
        value = b""
    if len(value) != 32:
        raise typer.BadParameter("expected 64 hex digits", param_hint=option)
    return value
