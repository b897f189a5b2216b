import socket
import threading

import pytest

from sidewinder.parallel.channel import HEADER, Channel


@pytest.fixture
def ends():
    sockets = socket.socketpair()
    yield sockets
    for end in sockets:
        end.close()


@pytest.mark.parametrize("size", [0, 1, 65_527, 65_528, 65_529, 65_536, 5_000_000])
def test_messages_arrive_whole(ends, size):
    message = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    sender = threading.Thread(target=Channel(ends[0]).send, args=(message,))
    sender.start()
    assert Channel(ends[1]).receive() == message
    sender.join()


def test_message_in_single_bytes(ends):
    def drip() -> None:
        for byte in HEADER.pack(3) + b"abc":
            ends[0].send(bytes([byte]))

    sender = threading.Thread(target=drip)
    sender.start()
    assert Channel(ends[1]).receive() == b"abc"
    sender.join()


@pytest.mark.parametrize("sent", [b"", b"\x05", HEADER.pack(70_000) + b"abc"], ids=len)
def test_end_of_the_other_side_is_an_error(ends, sent):
    ends[0].sendall(sent)
    ends[0].close()
    with pytest.raises(EOFError):
        Channel(ends[1]).receive()


def test_timeout_counts_time_without_progress(ends):
    ends[0].settimeout(0.1)
    with pytest.raises(TimeoutError):
        Channel(ends[0]).send(b"x" * 10_000_000)
