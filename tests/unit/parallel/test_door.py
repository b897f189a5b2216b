"""Peers and strangers at a rank's port."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from sidewinder.collectives.distributed import c10d
from sidewinder.parallel import door
from sidewinder.parallel.door import MOST_GUESTS, Door
from sidewinder.parallel.group import TensorParallel
from sidewinder.parallel.mesh import connect_mesh

TOKEN = bytes(range(32))


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0), backlog=2 * MOST_GUESTS) as listener:
        yield listener


@pytest.fixture
def guest(listener):
    """Connects, and says something."""
    guests = []

    def connect(said=b""):
        guests.append(socket.create_connection(listener.getsockname()))
        guests[-1].settimeout(20)
        guests[-1].sendall(said)
        return guests[-1]

    yield connect
    for each in guests:
        each.close()


def soon():
    return time.monotonic() + 20


def hello(rank):
    return TOKEN + rank.to_bytes(4, "big")


def test_silent_strangers_hold_up_nobody(monkeypatch, listener, guest):
    monkeypatch.setattr(door, "HELLO_S", 1000.0)
    for _ in range(5):
        guest()
        guest(TOKEN[:7])
    guest(hello(3))
    with closing(Door(listener, TOKEN)) as own:
        rank, peer = own.next_peer(soon())
    assert rank == 3
    assert peer.getblocking()
    peer.close()


def test_a_mesh_forms_among_silent_strangers(monkeypatch):
    monkeypatch.setattr(door, "HELLO_S", 1000.0)
    store, strangers = c10d.HashStore(), []

    def rank(r):
        if r == 2:
            for other in ("mesh/0", "mesh/1"):
                store.wait([other])
                host, port, _ = store.get(other).decode().split()
                strangers.extend(socket.create_connection((host, int(port))) for _ in range(4))
        return connect_mesh(TensorParallel(r, 3), store, "127.0.0.1", 20.0)

    with ThreadPoolExecutor(3) as pool:
        meshes = list(pool.map(rank, range(3)))
    assert all(mesh.count(None) == 1 for mesh in meshes)
    for each in (*strangers, *(peer for mesh in meshes for peer in mesh if peer is not None)):
        each.close()


def test_a_hello_may_come_in_pieces(listener, guest):
    slow, said = guest(hello(2)[:1]), hello(2)
    with closing(Door(listener, TOKEN)) as own, ThreadPoolExecutor(1) as pool:
        found = pool.submit(own.next_peer, soon())
        for start in range(1, len(said), 5):
            time.sleep(0.01)
            slow.sendall(said[start : start + 5])
        rank, peer = found.result()
    assert rank == 2
    slow.sendall(b"and more")
    assert peer.recv(8, socket.MSG_WAITALL) == b"and more"
    peer.close()


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.0\r\n\r\n", TOKEN[:-1] + b"\0\0\0\0\1"])
def test_strangers_are_turned_away(monkeypatch, listener, guest, said):
    monkeypatch.setattr(door, "HELLO_S", 0.2)
    stranger = guest(said)
    with closing(Door(listener, TOKEN)) as own, ThreadPoolExecutor(1) as pool:
        found = pool.submit(own.next_peer, soon())
        assert _is_closed(stranger)
        assert not found.done()
        guest(hello(1))
        rank, peer = found.result()
    assert rank == 1
    peer.close()


def test_whoever_is_gone_before_it_spoke_is_forgotten(listener, guest):
    guest().close()
    guest(TOKEN[:3]).close()
    guest(hello(1))
    with closing(Door(listener, TOKEN)) as own:
        rank, peer = own.next_peer(soon())
    assert rank == 1
    peer.close()


def test_of_too_many_strangers_the_first_has_to_go(monkeypatch, listener, guest):
    monkeypatch.setattr(door, "HELLO_S", 1000.0)
    strangers = [guest() for _ in range(MOST_GUESTS + 1)]
    guest(hello(1))
    with closing(Door(listener, TOKEN)) as own:
        _, peer = own.next_peer(soon())
        assert _is_closed(strangers[0])
        strangers[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            strangers[-1].recv(1)
    peer.close()
    assert _is_closed(strangers[-1])


def test_the_time_limit_is_for_all_together(monkeypatch, listener, guest):
    monkeypatch.setattr(door, "HELLO_S", 1000.0)
    for _ in range(3):
        guest(TOKEN[:5])
    with closing(Door(listener, TOKEN)) as own, pytest.raises(TimeoutError):
        own.next_peer(time.monotonic() + 0.3)


def _is_closed(connection):
    """Waits for the other end to close it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True  # It was closed with something unread.
