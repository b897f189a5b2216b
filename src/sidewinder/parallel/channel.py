"""A private stream between the caller and one rank: messages of bytes with a length before them."""

import socket
import struct

HEADER = struct.Struct("<Q")


class Channel:
    """One end of a connected stream socket.

    The two ends take turns, so there is never more than one message under way in a direction.

    Args:
        sock: the socket; the channel owns it from now on. It blocks unless it has a timeout, which
            then is the longest time without any progress before `TimeoutError`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        """Write one message. Raises `OSError` if the other end is closed."""
        header = HEADER.pack(len(message))
        if len(message) < 1 << 16:
            self._socket.sendall(header + message)
        else:
            self._socket.sendall(header)
            self._send_in_pieces(memoryview(message))

    def _send_in_pieces(self, rest: memoryview) -> None:
        # `sendall` counts its timeout over the whole message; here it is per piece.
        while rest:
            rest = rest[self._socket.send(rest) :]

    def receive(self) -> bytes | bytearray:
        """Wait for one message. Raises `EOFError` if the other end is closed."""
        first = self._socket.recv(1 << 16)
        while len(first) < HEADER.size:
            first += self._more(HEADER.size - len(first))
        (size,) = HEADER.unpack_from(first)
        body = first[HEADER.size :]
        if len(body) == size:
            return body
        assert len(body) < size, "the two ends take turns"
        return self._rest(body, size)

    def _rest(self, body: bytes, size: int) -> bytearray:
        message = bytearray(size)
        message[: len(body)] = body
        missing = memoryview(message)[len(body) :]
        while missing:
            count = self._socket.recv_into(missing)
            if count == 0:
                raise EOFError("the other end is closed")
            missing = missing[count:]
        return message

    def _more(self, size: int) -> bytes:
        piece = self._socket.recv(size)
        if not piece:
            raise EOFError("the other end is closed")
        return piece

    def close(self) -> None:
        self._socket.close()
