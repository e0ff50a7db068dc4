"""`TesseractNetwork.listen`: callbacks with what a name holds, whenever that changes."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
import weakref

import pytest
from networks import HERE, PATIENCE, Join, eventually

import learning_at_home as lib
from learning_at_home import errors

pytest_plugins = ["network_fixtures"]

Values = list[tuple[bytes, bytes]]


def test_listener_is_told_of_what_is_there_what_comes_and_what_goes(join: Join) -> None:
    first, second, third = join(), join(), join()
    assert second.wait_ready(PATIENCE)
    assert third.wait_ready(PATIENCE)
    first.store("name", b"there")
    told: list[Values] = []
    with second.listen("name", told.append) as listener:
        assert eventually(lambda: told == [[(first.public_key, b"there")]])
        first.store("name", b"changed")
        assert eventually(lambda: told[-1] == [(first.public_key, b"changed")])
        third.store("name", b"brief", expiration=2.0)
        both = {first.public_key: b"changed", third.public_key: b"brief"}
        assert eventually(lambda: dict(told[-1]) == both)
        assert eventually(lambda: told[-1] == [(first.public_key, b"changed")])  # nobody told: it expired
        told.clear()
        first.store("name", b"changed")  # as it was
        first.store("name", b"last")
        assert eventually(lambda: told[-1:] == [[(first.public_key, b"last")]])
        assert len(told) == 1, told
        assert not listener.closed
    assert listener.closed
    listener.close()
    first.store("name", b"unheard")
    hears: list[Values] = []
    second.listen("name", hears.append)
    assert eventually(lambda: hears == [[(first.public_key, b"unheard")]])  # through the same thread
    assert len(told) == 1


def test_listener_of_nothing_is_told_so(join: Join) -> None:
    _, second = join(), join()
    told: list[Values] = []
    second.listen(b"absent", told.append)
    assert eventually(lambda: told == [[]])


def test_callbacks_run_where_futures_are_resolved(join: Join) -> None:
    node = join()
    ran_in: list[str] = []
    for _ in range(3):
        node.listen("name", lambda _: ran_in.append(threading.current_thread().name))
    assert eventually(lambda: len(ran_in) == 3)
    assert set(ran_in) == {"lah-dispatch"}


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
def test_what_a_callback_raises_is_logged_and_harms_nobody(
    join: Join, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    node = join()
    told: list[Values] = []

    def fail(values: Values) -> None:
        told.append(values)
        raise error("on purpose")

    with caplog.at_level(logging.ERROR):
        node.listen("name", fail)
        assert eventually(lambda: "on purpose" in caplog.text)
        assert node.get("name", return_future=True).result(PATIENCE) == []
        node.store("name", b"value")
        assert eventually(lambda: told == [[], [(node.public_key, b"value")]])  # it is told the next time too


def test_a_slow_callback_is_told_the_newest(join: Join) -> None:
    node = join()
    go_on = threading.Event()
    told: list[Values] = []

    def slow(values: Values) -> None:
        told.append(values)
        assert go_on.wait(PATIENCE)

    node.listen("name", slow)
    assert eventually(lambda: told == [[]])
    for i in range(20):
        node.store("name", b"%d" % i)
    assert node.get("name") == [(node.public_key, b"19")]
    assert told == [[]]
    go_on.set()
    assert eventually(lambda: told[-1] == [(node.public_key, b"19")])
    assert len(told) <= 3  # what was there, the newest, and perhaps what came just before that


def test_a_callback_may_call_and_close_its_listener(join: Join) -> None:
    node = join()
    node.store("name", b"value")
    made, ended = threading.Event(), threading.Event()

    def once(values: Values) -> None:
        assert made.wait(PATIENCE)
        listener.close()
        assert node.get("name") == values
        ended.set()

    listener = node.listen("name", once)
    made.set()
    assert ended.wait(PATIENCE)


def test_a_callback_may_shut_its_network_down() -> None:
    node = lib.TesseractNetwork(port=0, host=HERE, start=True)
    listener = node.listen("name", lambda _: node.shutdown())
    assert eventually(lambda: listener.closed)
    assert not node.is_running


def test_an_event_loop_hears_too(join: Join) -> None:
    first, second = join(), join()
    assert second.wait_ready(PATIENCE)

    async def follow() -> list[Values]:
        told = []
        async for values in second.alisten("name"):
            told.append(values)
            if len(told) == 3:
                break
            await first.astore("name", b"%d" % len(told))
        return told

    owner = first.public_key
    assert asyncio.run(asyncio.wait_for(follow(), PATIENCE)) == [[], [(owner, b"1")], [(owner, b"2")]]
    assert second._listeners == {}  # the loop closed what was left


def test_waiting_for_news_ends_with_its_task_or_the_network(join: Join) -> None:
    node = join()

    async def follow() -> None:
        async for _ in node.alisten("name"):
            pass

    async def give_up() -> None:
        await asyncio.wait_for(follow(), 0.05)

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(give_up())
    assert node._listeners == {}

    async def shut_down() -> None:
        following = asyncio.ensure_future(follow())
        await asyncio.sleep(0.05)
        node.shutdown()
        await following

    with pytest.raises(errors.ShuttingDown):
        asyncio.run(asyncio.wait_for(shut_down(), PATIENCE))


def test_listeners_end_with_the_network(join: Join) -> None:
    node = join()
    listener = node.listen("name", lambda _: None)
    node.shutdown()
    assert listener.closed
    listener.close()
    with pytest.raises(RuntimeError, match="shut down"):
        node.listen("name", lambda _: None)
    del node, listener
    assert eventually(lambda: "lah-dispatch" not in {thread.name for thread in threading.enumerate()})


def test_a_collected_network_ends_its_listeners(join: Join) -> None:
    other = join()  # keeps the dispatcher
    assert other.get("name", return_future=True).result(PATIENCE) == []
    told: list[Values] = []

    class Callback:
        def __call__(self, values: Values) -> None:
            told.append(values)

    callback = Callback()
    node = lib.TesseractNetwork(port=0, host=HERE, start=True)
    node.listen("name", callback)  # the network holds the listener
    gc.collect()
    node.store("name", b"value")
    owner = node.public_key
    assert eventually(lambda: told[-1:] == [[(owner, b"value")]])
    held = weakref.ref(callback)
    del node, callback
    gc.collect()
    assert eventually(lambda: held() is None)


def test_a_child_may_close_what_it_inherited(join: Join) -> None:
    node = join()
    listener = node.listen("name", lambda _: None)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            listener.close()
            node.listen("name", lambda _: None)
        except RuntimeError as error:
            status = 0 if "fork" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    told: list[Values] = []
    with node.listen("name", told.append):
        assert eventually(lambda: told == [[]])


def test_bad_listeners_are_named(join: Join) -> None:
    node = join()
    with pytest.raises(errors.InvalidArgument, match="name"):
        node.listen("", print)
    with pytest.raises(errors.InvalidArgument, match="callback"):
        node.listen("name", None)  # type: ignore[arg-type]
    listeners = [node.listen(f"name{i}", lambda _: None) for i in range(1024)]
    with pytest.raises(errors.Overloaded, match="1024"):
        node.listen("one more", lambda _: None)
    node.listen("name0", lambda _: None)  # shares
    listeners[1].close()
    node.listen("one more", lambda _: None)
