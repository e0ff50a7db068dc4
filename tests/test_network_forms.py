"""The three forms of every call of `TesseractNetwork` that waits: plain, future and await."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest
from networks import HERE, PATIENCE, Join, eventually, raised_in_child, said_when_interrupted

import learning_at_home as lib
from learning_at_home import errors

pytest_plugins = ["network_fixtures"]

Call = Callable[..., Any]  # (network, name of the plain form, *arguments, **options)


def plain(network: lib.TesseractNetwork, name: str, *args: Any, **options: Any) -> Any:
    return getattr(network, name)(*args, **options)


def by_future(network: lib.TesseractNetwork, name: str, *args: Any, **options: Any) -> Any:
    future = getattr(network, name)(*args, **options, return_future=True)
    assert isinstance(future, Future)
    return future.result(PATIENCE)


def awaited(network: lib.TesseractNetwork, name: str, *args: Any, **options: Any) -> Any:
    async def call() -> Any:
        return await getattr(network, f"a{name}")(*args, **options)

    return asyncio.run(call())


@pytest.fixture(params=[plain, by_future, awaited])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where nobody answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((HERE, 0))
        yield bound.getsockname()[1]


def test_every_form_gives_the_same_results(join: Join, call: Call) -> None:
    first, second = join(), join()
    assert call(second, "wait_ready", PATIENCE) is True
    assert call(second, "store", "name", b"value", 30.0) == 2
    assert call(first, "get", "name") == [(second.public_key, b"value")]
    for consistency in ("first", "quorum", "all"):
        assert call(first, "get", "name", consistency=consistency) == [(second.public_key, b"value")]
    assert call(first, "get", b"absent") == []
    assert call(second, "store_many", {"many": b"1", b"\xff": b"2"}, 30.0) == {"many": 2, b"\xff": 2}
    found = call(first, "get_many", ["many", b"\xff", "absent"], consistency="all")
    assert found == {"many": [(second.public_key, b"1")], b"\xff": [(second.public_key, b"2")], "absent": []}
    assert call(first, "get_many", []) == call(first, "store_many", {}) == {}
    assert 0 < call(second, "ping", HERE, first.port, timeout=5.0) < 5
    assert call(second, "declare_experts", ["ffn.0", "ffn.3"], HERE, 4000, boot_id=7) == 2
    found = call(first, "get_experts", ["ffn.3", "ffn.1"])
    assert isinstance(found[0], lib.RemoteExpert)
    assert (found[0].uid, found[0].host, found[0].port, found[0].key) == ("ffn.3", HERE, 4000, second.public_key)
    assert found[1] is None
    assert call(first, "first_k_active", ["ffn.2", "ffn.3", "ffn.0"], k=1) == ["ffn.3"]
    assert call(second, "undeclare_experts") is None


def test_every_form_waits_no_longer_than_it_may(join: Join, call: Call, silent: int) -> None:
    node = join((HERE, silent))
    began = time.monotonic()
    assert call(node, "wait_ready", 0.05) is False
    assert call(node, "ping", HERE, silent, timeout=0.1) is None
    assert call(node, "get", "name", timeout=0.1) == []
    assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("get", ("",), {}),
        ("get", ("name",), {"timeout": -1}),
        ("get", ("name",), {"consistency": "most"}),
        ("get", ("name",), {"max_age": -1}),
        ("get_many", ("name",), {}),
        ("get_many", (["name", ""],), {}),
        ("get_many", ([str(i) for i in range(16385)],), {}),
        ("store", ("name", b""), {}),
        ("store_many", ({"name": b""},), {}),
        ("store_many", (["name"],), {}),
        ("declare_experts", (["ffn.01"], HERE, 4000), {}),
        ("declare_experts", (["ffn.1"], HERE, 0), {}),
        ("get_experts", ("ffn.1",), {}),
        ("first_k_active", (["ffn.1"],), {"k": 0}),
        ("ping", (HERE, 70000), {}),
        ("wait_ready", (-1,), {}),
    ],
)
def test_every_form_raises_the_same_errors(join: Join, name: str, args: tuple, options: dict) -> None:
    node = join()
    raised = []
    for form in (plain, by_future, awaited):
        with pytest.raises((errors.InvalidArgument, ValueError)) as caught:
            form(node, name, *args, **options)
        raised.append((type(caught.value), str(caught.value)))
    assert len(set(raised)) == 1


def test_not_started_and_shut_down_say_so_in_every_form(call: Call) -> None:
    network = lib.TesseractNetwork(port=0, host=HERE)
    with pytest.raises(RuntimeError, match="not started"):
        call(network, "get", "name")
    network.start()
    network.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        call(network, "get", "name")


@pytest.mark.parametrize("name", ["get", "wait_ready"])
def test_shutdown_ends_every_open_call(silent: int, name: str) -> None:
    network = lib.TesseractNetwork((HERE, silent), port=0, host=HERE, start=True)
    args = ("name",) if name == "get" else ()
    futures = [getattr(network, name)(*args, timeout=600.0, return_future=True) for _ in range(50)]
    assert network.status()["open_calls"] == 50
    network.shutdown()
    for future in futures:
        assert isinstance(future.exception(PATIENCE), errors.ShuttingDown)


def test_collected_network_ends_its_futures(silent: int) -> None:
    network = lib.TesseractNetwork((HERE, silent), port=0, host=HERE, start=True)
    future = network.get("name", timeout=600.0, return_future=True)
    del network
    gc.collect()
    assert isinstance(future.exception(PATIENCE), errors.ShuttingDown)


def test_callbacks_run_in_one_thread_of_their_own(join: Join) -> None:
    nodes = [join() for _ in range(3)]
    ran_in: list[str] = []
    futures = [node.get("name", return_future=True) for node in nodes for _ in range(20)]
    for future in futures:
        future.add_done_callback(lambda _: ran_in.append(threading.current_thread().name))
    wait(futures, PATIENCE)
    assert eventually(lambda: len(ran_in) == 60)
    # The one of a future that was done already runs at once, where it was added.
    assert set(ran_in) <= {"lah-dispatch", threading.current_thread().name}
    assert sum(thread.name == "lah-dispatch" for thread in threading.enumerate()) == 1


def test_callback_may_call_and_shut_down(join: Join) -> None:
    first = join()
    second = lib.TesseractNetwork((HERE, first.port), port=0, host=HERE, start=True)
    ended = threading.Event()

    def go_on(_: Future) -> None:
        assert second.store("name", b"value") >= 1  # a plain call, in the dispatcher itself
        second.shutdown()
        ended.set()

    second.get("name", return_future=True).add_done_callback(go_on)
    assert ended.wait(PATIENCE)
    assert not second.is_running


def test_cancelled_future_is_not_resolved(join: Join, silent: int) -> None:
    node = join((HERE, silent))
    future = node.get("name", timeout=0.2, return_future=True)
    assert future.cancel()
    after = node.get("name", timeout=0.3, return_future=True)
    assert after.result(PATIENCE) == []  # the dispatcher went past the cancelled one
    with pytest.raises(CancelledError):
        future.result()
    assert node.status()["open_calls"] == 0


def test_cancelled_task_ends_at_once(join: Join, silent: int) -> None:
    node = join((HERE, silent))

    async def give_up() -> None:
        await asyncio.wait_for(node.aget("name", timeout=600.0), 0.05)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(give_up())


def test_many_calls_of_one_loop_run_at_once(join: Join) -> None:
    first, second = join(), join()
    assert second.wait_ready(PATIENCE)

    async def work() -> list[Any]:
        await asyncio.gather(*(second.astore(f"name{i}", b"%d" % i) for i in range(100)))
        return await asyncio.gather(*(first.aget(f"name{i}") for i in range(100)))

    assert asyncio.run(work()) == [[(second.public_key, b"%d" % i)] for i in range(100)]


def test_open_calls_are_bounded(join: Join, silent: int) -> None:
    node = join((HERE, silent))
    futures = [node.wait_ready(600.0, return_future=True) for _ in range(4096)]
    for form in (plain, by_future, awaited):
        with pytest.raises(errors.Overloaded, match="4096"):
            form(node, "get", "name")
    node.shutdown()
    assert all(isinstance(future.exception(PATIENCE), errors.ShuttingDown) for future in futures)


def test_dispatcher_ends_with_the_last_network() -> None:
    def dispatchers() -> int:
        return sum(thread.name == "lah-dispatch" for thread in threading.enumerate())

    gc.collect()
    before = dispatchers()
    with lib.TesseractNetwork(port=0, host=HERE) as network:
        assert dispatchers() == before  # nobody needed it yet
        network.get("name", return_future=True).result(PATIENCE)
        assert dispatchers() == 1
    assert dispatchers() == before


def test_fork_leaves_futures_to_the_parent(join: Join) -> None:
    first, second = join(), join()
    assert second.wait_ready(PATIENCE)
    assert second.get("name", return_future=True).result(PATIENCE) == []
    assert "fork" in raised_in_child(lambda: second.get("name", return_future=True))
    assert first.get("name", return_future=True).result(PATIENCE) == []


def test_child_may_make_a_network_of_its_own(join: Join) -> None:
    node = join()
    assert node.get("name", return_future=True).result(PATIENCE) == []
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with lib.TesseractNetwork(port=0, host=HERE) as own:
                own.store("name", b"child", return_future=True).result(PATIENCE)
                status = 0 if own.get("name", return_future=True).result(PATIENCE) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_interrupt_ends_a_plain_call(silent: int) -> None:
    code = f"""
import learning_at_home as lib
with lib.TesseractNetwork(("{HERE}", {silent}), port=0, host="{HERE}") as network:
    network.get("other", timeout=600.0, return_future=True)
    print("waiting", flush=True)
    network.get("name", timeout=600.0)
"""
    assert "KeyboardInterrupt" in said_when_interrupted(code)


def test_interpreter_ends_with_open_futures(silent: int) -> None:
    code = f"""
import learning_at_home as lib
network = lib.TesseractNetwork(("{HERE}", {silent}), port=0, host="{HERE}", start=True)
future = network.get("other", timeout=600.0, return_future=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
