"""Who connects to a rank's port: peers, who say a secret first, and strangers."""

import hmac
import selectors
import socket
import time

RANK_BYTES = 4
HELLO_S = 5.0
"""How long whoever connects may take to prove that it is a rank."""
MOST_GUESTS = 64
"""So many are listened to at once; of more, who has been silent for longest has to go."""


class Door:
    """Listens to all who connect at once, so that nobody's silence holds up the others.

    Args:
        listener: bound and listening; the caller closes it.
        token: what a peer sends first, before its rank.
    """

    def __init__(self, listener: socket.socket, token: bytes) -> None:
        self._listener = listener
        self._token = token
        self._guests: dict[socket.socket, tuple[bytearray, float]] = {}
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def next_peer(self, deadline: float) -> tuple[int, socket.socket]:
        """The rank of the next one that knows the token, and its connection, which blocks.

        Raises:
            TimeoutError: if there is none before `time.monotonic()` is `deadline`.
        """
        while True:
            now = time.monotonic()
            for guest, (_, patience) in list(self._guests.items()):
                if patience <= now:
                    self._turn_away(guest)
            if now >= deadline:
                raise TimeoutError("timed out")
            until = min([deadline, *(patience for _, patience in self._guests.values())])
            for key, _ in self._selector.select(until - now):
                if key.fileobj is self._listener:
                    self._let_in()
                    continue
                assert isinstance(key.fileobj, socket.socket)
                rank = self._listen_to(key.fileobj)
                if rank is not None:
                    return rank, key.fileobj

    def close(self) -> None:
        """Turn away all who have not proved anything."""
        for guest in list(self._guests):
            self._turn_away(guest)
        self._selector.close()

    def _let_in(self) -> None:
        try:
            guest, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return  # It has gone again.
        if len(self._guests) >= MOST_GUESTS:
            self._turn_away(next(iter(self._guests)))
        guest.setblocking(False)
        self._guests[guest] = bytearray(), time.monotonic() + HELLO_S
        self._selector.register(guest, selectors.EVENT_READ)

    def _listen_to(self, guest: socket.socket) -> int | None:
        """The guest's rank, if it has said all, and the truth; a stranger is turned away."""
        if guest not in self._guests:
            return None  # Turned away while others were listened to.
        said, _ = self._guests[guest]
        length = len(self._token) + RANK_BYTES
        try:
            more = guest.recv(length - len(said))
        except BlockingIOError:
            return None
        except OSError:
            more = b""
        said += more
        if more and len(said) < length:
            return None
        if not hmac.compare_digest(bytes(said[: len(self._token)]), self._token) or not more:
            self._turn_away(guest)
            return None
        self._selector.unregister(guest)
        del self._guests[guest]
        guest.setblocking(True)
        return int.from_bytes(said[len(self._token) :], "big")

    def _turn_away(self, guest: socket.socket) -> None:
        self._selector.unregister(guest)
        del self._guests[guest]
        guest.close()
