"""What a network node keeps in its state file, and what a bad file does to it: nothing."""

from __future__ import annotations

import os
import stat
import warnings
from pathlib import Path

import pytest
from networks import HERE, PATIENCE, Join, eventually

import learning_at_home as lib
from learning_at_home import errors
from learning_at_home._state_file import StateFile

pytest_plugins = ["network_fixtures"]


def test_node_comes_back_with_its_key_and_its_contacts(join: Join, tmp_path: Path) -> None:
    file = tmp_path / "node.state"
    seed = join()
    first = join(state_file=file)
    assert first.wait_ready(PATIENCE)
    first.store("name", b"value")
    key = first.public_key
    first.shutdown()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["node.state"]

    with lib.TesseractNetwork(port=0, host=HERE, start=True, state_file=file) as again:  # no initial peer
        assert again.public_key == key
        assert again.wait_ready(PATIENCE)
        assert eventually(lambda: again.status()["peers"] >= 1)
        assert again.store("name", b"newer") >= 2  # a sequence number above the last one
        assert seed.get("name") == [(key, b"newer")]


def test_given_identity_stays_out_of_the_file(join: Join, tmp_path: Path) -> None:
    file = tmp_path / "node.state"
    identity = bytes(range(32))
    join()
    join(state_file=file, identity=identity).shutdown()
    assert identity not in file.read_bytes()
    with join(state_file=file) as another:
        assert another.identity != identity
    assert another.identity in file.read_bytes()


@pytest.mark.parametrize("damage", ["flipped", "cut", "pickle", "empty", "huge"])
def test_damaged_file_is_reported_and_set_aside(join: Join, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "node.state"
    join()
    first = join(state_file=file)
    key = first.public_key
    first.shutdown()
    good = file.read_bytes()
    bad = {
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[: len(good) // 2],
        "pickle": b"cos\nsystem\n(S'touch " + bytes(tmp_path / "executed") + b"'\ntR.",
        "empty": b"",
        "huge": good + bytes(1 << 20),
    }[damage]
    file.write_bytes(bad)
    with pytest.warns(RuntimeWarning, match=r"node\.state.*set aside as node\.state\.bad"):
        second = join(state_file=file)
    assert second.public_key != key
    assert (tmp_path / "node.state.bad").read_bytes() == bad
    assert not (tmp_path / "executed").exists()
    second.shutdown()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with join(state_file=file) as third:
            assert third.public_key == second.public_key


def test_file_of_another_network_is_the_callers_mistake(join: Join, tmp_path: Path) -> None:
    file = tmp_path / "node.state"
    join(state_file=file, network_id="one").shutdown()
    before = file.read_bytes()
    with pytest.raises(errors.InvalidArgument, match=r"state_file.*'one'.*'two'"):
        lib.TesseractNetwork(port=0, network_id="two", state_file=file)
    assert file.read_bytes() == before


def test_paths_that_cannot_be_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "node.state", tmp_path, 7):
        with pytest.raises(errors.InvalidArgument, match="state_file"):
            lib.TesseractNetwork(port=0, state_file=path)  # type: ignore[arg-type]


def test_a_disk_that_refuses_is_a_warning(join: Join, tmp_path: Path) -> None:
    file = tmp_path / "node.state"
    node = join(state_file=file)
    file.mkdir()  # nothing can be renamed onto a folder
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        node.shutdown()
    assert [path.name for path in tmp_path.iterdir()] == ["node.state"]  # no temporary file is left


def test_saves_again_and_again_and_the_last_word_at_the_end(tmp_path: Path) -> None:
    saved = StateFile(tmp_path / "node.state", "net")
    count = 0

    def current() -> bytes:
        nonlocal count
        count += 1
        return str(count).encode()

    saved.keep(current, period=0.01)
    assert eventually(lambda: saved.path.exists() and int(saved.path.read_bytes()) >= 3)
    saved.close(b"last")
    assert saved.path.read_bytes() == b"last"
    assert os.listdir(tmp_path) == ["node.state"]
