"""File descriptors watched by a host."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING

import pytest

from initiator.io.host import Host
from tests.links import QueueLink

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def link() -> QueueLink:
    return QueueLink()


@pytest.fixture
def host(link: QueueLink) -> Iterator[Host]:
    with Host([link]) as host:
        yield host


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as stack:
        one, other = socket.socketpair()
        yield stack.enter_context(closing(one)), stack.enter_context(closing(other))


def test_a_ready_descriptor_ends_the_wait_and_its_callback_is_called(
    host: Host, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    events: list[int] = []
    host.watch(ours.fileno(), events.append)
    host.run_once(0)
    assert events == []
    theirs.send(b"x")
    host.run_once()
    assert events == [select.POLLIN]
    host.watch(ours.fileno(), events.append, select.POLLOUT)
    host.run_once()
    assert events == [select.POLLIN, select.POLLOUT]


def test_frames_received_after_a_gap_end_the_wait(host: Host, link: QueueLink) -> None:
    # A bio may have ended, and nothing be outstanding that would end it later.
    link.deliver(bytes(60))
    time.sleep(0.02)
    begin = time.monotonic()
    host.run_once(5)
    assert time.monotonic() - begin < 2


def test_watched_descriptors_are_polled_under_a_load_of_frames(
    host: Host, link: QueueLink, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    events: list[int] = []
    host.watch(ours.fileno(), events.append)
    link.deliver(bytes(60))
    host.run_once()
    assert events == [select.POLLIN]


def test_a_callback_unwatched_by_another_is_not_called(host: Host) -> None:
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(2)]
        sockets = [stack.enter_context(closing(s)) for pair in pairs for s in pair]
        ours = [sockets[0].fileno(), sockets[2].fileno()]
        called: list[int] = []

        def end_both(fd: int, _events: int) -> None:
            called.append(fd)
            for each in ours:
                host.unwatch(each)

        for fd in ours:
            host.watch(fd, partial(end_both, fd))
        sockets[1].send(b"x")
        sockets[3].send(b"x")
        host.run_once()
        host.run_once(0)
    assert len(called) == 1
    assert called[0] in ours


def test_an_exception_of_a_callback_propagates(
    host: Host, pair: tuple[socket.socket, socket.socket]
) -> None:
    def fail(_events: int) -> None:
        raise ZeroDivisionError

    pair[1].send(b"x")
    host.watch(pair[0].fileno(), fail)
    with pytest.raises(ZeroDivisionError):
        host.run_once()
