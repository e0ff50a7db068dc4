"""Closed runs: certificates in Python and on the command line, over real sockets."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from learning_at_home import Admission, TesseractNetwork, issue_certificate
from learning_at_home.admission import CERTIFICATE_BYTES, public_key_of
from learning_at_home.cli.main import app
from learning_at_home.errors import InvalidArgument

OWNER = bytes(range(32))
OWNER_KEY = public_key_of(OWNER)


def admitted(lifetime: float = 600.0, *peers: tuple[str, int]) -> TesseractNetwork:
    seed = os.urandom(32)
    certificate = issue_certificate(OWNER, public_key_of(seed), lifetime)
    admission = Admission.certificate(OWNER_KEY, certificate)
    return TesseractNetwork(*peers, port=0, host="127.0.0.1", identity=seed, admission=admission, start=True)


def test_nodes_with_certificates_find_each_other_and_strangers_find_nobody() -> None:
    with admitted() as first:
        address = ("127.0.0.1", first.port)
        with (
            admitted(600.0, address) as second,
            TesseractNetwork(address, port=0, host="127.0.0.1", start=True) as stranger,
        ):
            assert second.wait_ready(20)
            assert second.store("name", b"value", timeout=20) == 2
            assert first.get("name", timeout=20) == [(second.public_key, b"value")]
            assert stranger.get("name", timeout=3) == []
            assert stranger.store("name", b"other", timeout=3) == 1  # its own copy
            assert first.get("name", timeout=20) == [(second.public_key, b"value")]
            assert stranger.status()["refusals"] > 0
            assert first.status()["not_admitted"] > 0
            assert first.status()["peers"] == 1


def test_a_certificate_is_renewed_while_the_node_runs() -> None:
    with admitted() as first, admitted(60.0, ("127.0.0.1", first.port)) as second:
        assert second.wait_ready(20)
        second.renew_certificate(issue_certificate(OWNER, second.public_key, 600.0))
        assert second.store("name", b"value", timeout=20) == 2
        assert first.get("name", timeout=20) == [(second.public_key, b"value")]


def test_certificates_that_cannot_work_are_refused_at_once() -> None:
    seed = os.urandom(32)
    mine = public_key_of(seed)
    for certificate, problem in (
        (issue_certificate(OWNER, public_key_of(os.urandom(32))), "not one of owner"),
        (issue_certificate(os.urandom(32), mine), "not one of owner"),
        (issue_certificate(OWNER, mine, network_id="another"), "not one of owner"),
        (issue_certificate(OWNER, mine, 0.001), "expired"),
    ):
        time.sleep(0.002)
        with pytest.raises(InvalidArgument, match=problem):
            TesseractNetwork(port=0, identity=seed, admission=Admission.certificate(OWNER_KEY, certificate), start=True)
    with pytest.raises(InvalidArgument, match="nothing to renew"):
        TesseractNetwork(port=0).renew_certificate(issue_certificate(OWNER, mine))


@pytest.mark.parametrize("lifetime", [0.0, -1.0, float("nan"), float("inf"), 1e12])
def test_lifetimes_that_make_no_sense_are_named(lifetime: float) -> None:
    with pytest.raises(InvalidArgument, match="lifetime: expected"):
        issue_certificate(OWNER, OWNER_KEY, lifetime)


def test_arguments_of_a_wrong_kind_are_named() -> None:
    with pytest.raises(InvalidArgument, match="owner_key: expected 32 bytes, got 3 bytes"):
        Admission.certificate(b"abc", bytes(CERTIFICATE_BYTES))
    with pytest.raises(InvalidArgument, match="certificate: expected 72 bytes, got str"):
        Admission.certificate(OWNER_KEY, "x" * CERTIFICATE_BYTES)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="admission: expected Admission"):
        TesseractNetwork(port=0, admission="open")  # type: ignore[arg-type]


def test_the_command_line_makes_keys_and_certificates(tmp_path: Path) -> None:
    run = CliRunner()

    def output(*arguments: str) -> str:
        done = run.invoke(app, ["admission", *arguments])
        assert done.exit_code == 0, done.output
        return done.output.strip()

    owner_key = output("make-key", str(tmp_path / "owner"))
    node_key = output("make-key", str(tmp_path / "node"))
    assert (tmp_path / "owner").stat().st_mode & 0o777 == 0o600
    certificate = bytes.fromhex(output("issue", node_key, "--owner", str(tmp_path / "owner"), "--days", "2"))
    Admission.certificate(bytes.fromhex(owner_key), certificate).check("learning_at_home", bytes.fromhex(node_key))
    again = run.invoke(app, ["admission", "make-key", str(tmp_path / "owner")])
    assert again.exit_code == 2  # a key is never overwritten
    wrong = run.invoke(app, ["admission", "issue", "abc", "--owner", str(tmp_path / "owner")])
    assert wrong.exit_code == 2
    assert "64 hex digits" in re.sub(r"\s+", " ", wrong.output)
