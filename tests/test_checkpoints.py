"""Checkpoints: what comes back after a stop, a crash, a full disk, a damaged file."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from conftest import InBackground, Process, wait_until
from torch import nn

import learning_at_home as lib
from learning_at_home import _safetensors
from learning_at_home.errors import InvalidArgument, SchemaMismatch
from learning_at_home.server.checkpoint_file import read_snapshot
from learning_at_home.server.checkpoints import encoded

HIDDEN = 8
NEVER = 86_400.0  # a period that no test sees the end of


def make_backend(uid: str = "e.0", hidden: int = HIDDEN, optimizer: str = "adam") -> lib.ExpertBackend:
    module = nn.Sequential(nn.Linear(hidden, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, hidden))
    if optimizer == "adam":
        opt: torch.optim.Optimizer = torch.optim.Adam(module.parameters(), lr=0.01, amsgrad=True)
    else:
        opt = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=2, gamma=0.5)
    return lib.ExpertBackend(uid, module, opt, args_schema=(lib.BatchTensorProto(hidden),), scheduler=scheduler)


def train(backend: lib.ExpertBackend, steps: range) -> None:
    """Updates that depend on their number only."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, grad = torch.randn(2, 5, HIDDEN, generator=generator)
        backend.backward(x, grad)


@contextmanager
def server_of(directory: Path, *backends: lib.ExpertBackend, **kwargs: object) -> Iterator[lib.TesseractServer]:
    kwargs = {"checkpoint_period": NEVER, **kwargs}
    experts = {backend.name: backend for backend in backends}
    with lib.TesseractServer(None, experts, port=0, checkpoint_dir=directory, **kwargs) as server:
        yield server


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def save(directory: Path, backend: lib.ExpertBackend, generations: int = 1) -> None:
    with server_of(directory, backend) as server:
        for _ in range(generations):
            train(backend, range(backend.updates, backend.updates + 1))
            assert server.save_checkpoints() == 1


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_resumed_training_equals_uninterrupted_training(tmp_path: Path, optimizer: str) -> None:
    torch.manual_seed(0)
    straight = make_backend(optimizer=optimizer)
    first = make_backend(optimizer=optimizer)
    first.expert.load_state_dict(straight.expert.state_dict())
    train(straight, range(6))
    with server_of(tmp_path, first):
        train(first, range(3))
    second = make_backend(optimizer=optimizer)
    with server_of(tmp_path, second):
        assert second.updates == 3
        assert second.scheduler.last_epoch == 3
        train(second, range(3, 6))
    for (name, want), got in zip(
        straight.expert.state_dict().items(), second.expert.state_dict().values(), strict=True
    ):
        assert torch.equal(got, want), name
    state, want_state = second.opt.state_dict(), straight.opt.state_dict()
    assert state["param_groups"] == want_state["param_groups"]
    for index, values in want_state["state"].items():
        for name, value in values.items():
            assert torch.equal(state["state"][index][name], value), name


def test_what_was_updated_is_saved_in_the_background_and_old_files_go(tmp_path: Path) -> None:
    busy, idle = make_backend("e.0"), make_backend("e.1")
    with server_of(tmp_path, busy, idle, checkpoint_period=0.02, checkpoint_keep=3) as server:
        expert = lib.RemoteExpert("e.0", port=server.port)
        for generation in range(1, 6):
            expert(torch.randn(4, HIDDEN)).sum().backward()
            wait_until(lambda n=generation: f"e.0@{n:08d}.safetensors" in files(tmp_path), 30, "a new generation")
        wait_until(lambda: len(files(tmp_path)) == 3, 30, "old generations are gone")
        assert server.last_checkpoint_error is None
        assert server.save_checkpoints() == 0
    assert files(tmp_path) == [f"e.0@{n:08d}.safetensors" for n in (3, 4, 5)]
    assert read_snapshot(tmp_path / "e.0@00000005.safetensors").updates == busy.updates == 5


class Accumulating(lib.ExpertBackend):
    """Steps after every second backward call, and counts nothing."""

    def apply_gradients(self) -> None:
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls % 2 == 0:
            self.opt.step()
            self.opt.zero_grad()


def test_updates_that_a_backend_does_not_count_are_saved_too(tmp_path: Path) -> None:
    module = nn.Linear(HIDDEN, HIDDEN)
    opt = torch.optim.SGD(module.parameters(), lr=0.1)
    backend = Accumulating("e.0", module, opt, args_schema=(lib.BatchTensorProto(HIDDEN),))
    with server_of(tmp_path, backend) as server:
        for saved in (0, 1, 0, 1):
            train(backend, range(1))
            assert server.save_checkpoints() == saved
            assert server.save_checkpoints() == 0


def test_a_server_that_must_not_wait_for_its_batch_does_not_wait_to_save(tmp_path: Path) -> None:
    computing, release = threading.Event(), threading.Event()

    class Waits(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            computing.set()
            assert release.wait(60)
            return super().forward(x)

    module = Waits(HIDDEN, HIDDEN)
    opt = torch.optim.SGD(module.parameters(), lr=0.1)
    rows = lib.BatchTensorProto(HIDDEN)
    backend = lib.ExpertBackend("e.0", module, opt, args_schema=(rows,), outputs_schema=rows)
    with server_of(tmp_path, backend, checkpoint_period=0.01) as server:
        backend.updates = 1  # to be saved, as soon as the batch lets it
        expert = lib.RemoteExpert("e.0", port=server.port)
        call = InBackground(lambda: expert(torch.randn(2, HIDDEN)))
        assert computing.wait(60)
        assert server.shutdown(timeout=0.05) is False
        assert isinstance(call.outcome(), lib.errors.LearningAtHomeError)
        release.set()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    at = len(data) - 100
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def other_settings(data: bytes) -> bytes:
    assert data.count(b"0.999") == 1
    return data.replace(b"0.999", b"0.998")


@pytest.mark.parametrize("damage", [cut, flip, other_settings, lambda data: b"", lambda data: b"\xff" * len(data)])
def test_a_damaged_file_is_named_and_the_one_before_it_loaded(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, make_backend(), generations=2)
    newest = tmp_path / "e.0@00000002.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))
    backend = make_backend()
    with server_of(tmp_path, backend) as server:
        assert backend.updates == 1
        assert [record.levelname for record in caplog.records if str(newest) in record.getMessage()] == ["WARNING"]
        train(backend, range(1, 2))
        server.save_checkpoints()
    assert files(tmp_path) == ["e.0@00000001.safetensors", "e.0@00000003.safetensors"]


def test_files_of_other_experts_say_what_does_not_fit(tmp_path: Path) -> None:
    save(tmp_path, make_backend())
    path = tmp_path / "e.0@00000001.safetensors"
    wider = make_backend(hidden=HIDDEN + 1)
    before = wider.expert[0].weight.clone()
    with pytest.raises(SchemaMismatch) as caught:
        lib.TesseractServer(None, {"e.0": wider}, checkpoint_dir=tmp_path)
    for part in (str(path), "'0.weight'", f"float32[32, {HIDDEN + 1}]", f"float32[32, {HIDDEN}]"):
        assert part in str(caught.value)
    assert torch.equal(wider.expert[0].weight, before)
    with pytest.raises(SchemaMismatch, match="optimizer: expected SGD, got Adam"):
        lib.TesseractServer(None, {"e.0": make_backend(optimizer="sgd")}, checkpoint_dir=tmp_path)
    path.rename(tmp_path / "e.7@00000001.safetensors")
    with pytest.raises(SchemaMismatch, match=r"uid: expected 'e\.7', got 'e\.0'"):
        lib.TesseractServer(None, {"e.7": make_backend("e.7")}, checkpoint_dir=tmp_path)


@contextmanager
def no_file_larger_than(nbytes: int) -> Iterator[None]:
    """As a full disk: writing more raises OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_harms_neither_serving_nor_the_last_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = make_backend()
    with server_of(tmp_path, backend) as server:
        train(backend, range(1))
        server.save_checkpoints()
        expert = lib.RemoteExpert("e.0", port=server.port)
        caplog.set_level(logging.WARNING)
        with no_file_larger_than(4096):
            for _ in range(3):
                expert(torch.randn(4, HIDDEN)).sum().backward()
                assert server.save_checkpoints() == 0
        assert server.last_checkpoint_error is not None
        assert "'e.0' was not saved" in server.last_checkpoint_error
        assert len([record for record in caplog.records if "was not saved" in record.getMessage()]) == 1
        assert files(tmp_path) == ["e.0@00000001.safetensors"]
        assert read_snapshot(tmp_path / "e.0@00000001.safetensors").updates == 1
        assert server.save_checkpoints() == 1
        assert server.last_checkpoint_error is None
    assert read_snapshot(tmp_path / "e.0@00000002.safetensors").updates == backend.updates == 4


KILLS = 10
SERVERS = """
import os, sys, time, torch
import learning_at_home as lib

class Counter(torch.nn.Module):
    # A row of ones as gradient adds the same to every one of its values.
    def __init__(self):
        super().__init__()
        self.values = torch.nn.Parameter(torch.zeros(200_000))

    def forward(self, x):
        return x + self.values.sum() / 4

def serve():
    module = Counter()
    opt = torch.optim.Adam(module.parameters())
    experts = {"e.0": lib.ExpertBackend("e.0", module, opt, args_schema=(lib.BatchTensorProto(4),))}
    options = {"checkpoint_dir": sys.argv[1], "checkpoint_period": 0.01, "allow_fetch": True}
    with lib.TesseractServer(None, experts, port=0, **options) as server:
        print("READY", os.getpid(), server.port, flush=True)
        while os.getppid() == parent:
            time.sleep(0.2)

torch.set_num_threads(1)
parent = os.getpid()
torch.optim.Adam(Counter().parameters()).step()  # imports much
for _ in sys.stdin:  # each line starts a server, once the last is gone; importing torch once is enough
    child = os.fork()
    if child == 0:
        serve()
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_kill_during_writes_loses_no_finished_file_and_tears_none(
    tmp_path: Path, spawn: Callable[..., Process]
) -> None:
    directory = tmp_path / "saved"
    servers = spawn("-c", SERVERS, directory)
    durable, trainers = 0, []
    for kill in range(1, KILLS + 1):
        servers.popen.stdin.write("\n")
        servers.popen.stdin.flush()
        _, pid, port = servers.wait_line("READY", count=kill).split()
        expert = lib.RemoteExpert("e.0", port=int(port))
        restored = expert.fetch_state()["values"]
        assert bool((restored == restored[0]).all())
        assert bool(restored[0] < 0) == (durable > 0)
        trainers.append(InBackground(lambda e=expert: train_until_killed(e)))
        wait_until(lambda n=durable: newest_updates(directory) > n + 2, 60, "saved while it trains")
        wait_until(lambda: any(name.endswith(".tmp") for name in files(directory)), 60, "in the middle of a write")
        durable = newest_updates(directory)
        os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda p=pid: not Path(f"/proc/{p}").exists(), 60, "it is gone")
        for path in directory.glob("*.safetensors"):
            snapshot = read_snapshot(path)  # complete, or DamagedFile
            values = snapshot.tensors["module.values"]
            assert bool((values == values[0]).all())
            assert snapshot.tensors["optimizer.state.0.step"] == snapshot.updates
        assert newest_updates(directory) >= durable
        durable = newest_updates(directory)
    for trainer in trainers:
        trainer.result()


def train_until_killed(expert: lib.RemoteExpert) -> None:
    with suppress(lib.errors.LearningAtHomeError):
        while True:
            expert(torch.ones(1, 4)).sum().backward()


def newest_updates(directory: Path) -> int:
    """Updates in the newest complete file; a file may be pruned while it is looked at."""
    while True:
        paths = sorted(directory.glob("*.safetensors"))
        if not paths:
            return 0
        try:
            return read_snapshot(paths[-1]).updates
        except FileNotFoundError:
            continue


def test_half_written_files_are_removed_at_the_next_start(tmp_path: Path) -> None:
    save(tmp_path, make_backend())
    (tmp_path / "e.0@00000002.safetensors.123.tmp").write_bytes(b"half")
    (tmp_path / "other@00000002.safetensors.123.tmp").write_bytes(b"somebody else's")
    with server_of(tmp_path, make_backend()):
        assert files(tmp_path) == ["e.0@00000001.safetensors", "other@00000002.safetensors.123.tmp"]


def test_file_names_are_safe_and_distinct(tmp_path: Path) -> None:
    uids = ["Expert.1", "expert.1", "/up.0", "~a/b.0", "%65xpert.1", "a@b.0", "ü" * 60, "ü" * 60 + "x", "x" * 128]
    names = [encoded(uid) for uid in uids]
    assert len({name.lower() for name in names}) == len(uids)
    for name in names:
        assert len(name) <= 180
        assert not set(name) & set('/\\@:*?"<>|')
    backends = [make_backend(uid) for uid in uids]
    with server_of(tmp_path, *backends):
        for backend in backends:
            train(backend, range(1))
    assert len(files(tmp_path)) == len(uids)
    again = [make_backend(uid) for uid in uids]
    with server_of(tmp_path, *again):
        assert [backend.updates for backend in again] == [1] * len(uids)


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    backend = make_backend()
    with pytest.raises(InvalidArgument, match="checkpoint_period"):
        lib.TesseractServer(None, {"e.0": backend}, checkpoint_dir=tmp_path, checkpoint_period=0)
    with pytest.raises(InvalidArgument, match="checkpoint_keep"):
        lib.TesseractServer(None, {"e.0": backend}, checkpoint_dir=tmp_path, checkpoint_keep=0)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="checkpoint_dir"):
        lib.TesseractServer(None, {"e.0": backend}, checkpoint_dir=tmp_path / "file")
    with lib.TesseractServer(None, {"e.0": backend}, port=0) as server:
        with pytest.raises(InvalidArgument, match="checkpoint_dir"):
            server.save_checkpoints()
        assert server.last_checkpoint_error is None
    backend.opt.param_groups[0]["odd"], good = object(), make_backend("e.1")
    with server_of(tmp_path / "saved", backend, good) as server:
        train(backend, range(1))
        train(good, range(1))
        assert server.save_checkpoints() == 1
        assert "'optimizer.param_groups.0.odd'" in str(server.last_checkpoint_error)


@pytest.mark.parametrize("dtype", sorted(_safetensors._DTYPES, key=str))
def test_the_library_reads_what_we_write(dtype: torch.dtype) -> None:
    one = torch.zeros(3, 2, dtype=torch.uint8) if dtype in (torch.bool, torch.uint8) else torch.randn(3, 2) * 10
    tensors = {"odd": torch.ones(3, dtype=torch.uint8), "x.y": one.to(dtype), "scalar": torch.tensor(1).to(dtype)}
    tensors["none"] = torch.zeros(0, 4, dtype=dtype)
    got, metadata = _safetensors.from_bytes(bytes(_safetensors.to_bytes(tensors, {"k": "ü"})))
    assert metadata == {"k": "ü"}
    assert _safetensors.differences(tensors, got) is None
    for name, tensor in tensors.items():
        assert list(map(bytes, _safetensors.raw(got[name]))) == list(map(bytes, _safetensors.raw(tensor))), name


def test_bytes_from_anywhere_are_a_file_or_a_value_error() -> None:
    good = bytes(_safetensors.to_bytes({"x": torch.randn(4)}, {"k": "v"}))
    for data in (b"", good[:7], good[:-1], good + b"\0", b"\xff" * 64, os.urandom(64)):
        with pytest.raises(ValueError):  # noqa: PT011  whatever it says
            _safetensors.from_bytes(data)
    for at in range(len(good)):
        try:
            _safetensors.from_bytes(good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :])
        except ValueError:
            continue
