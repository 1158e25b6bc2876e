"""A DNS server that knows one name, whose addresses a test sets."""

import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

_HEADER = struct.Struct(">6H")
_ANSWERED = 0x8180
_A = 1


@dataclass
class NameServer:
    """Answers every question for an A record with `addresses`, whatever the name."""

    port: int
    addresses: Sequence[str] = field(default_factory=list)

    def answer(self, question: bytes) -> bytes:
        """A whole message for a whole message, as RFC 1035 has them; one question in each."""
        number = _HEADER.unpack_from(question)[0]
        end = question.index(b"\0", _HEADER.size) + 5
        kind = struct.unpack_from(">H", question, end - 4)[0]
        addresses = self.addresses if kind == _A else []
        records = b"".join(
            struct.pack(">HHHIH", 0xC00C, _A, 1, 0, 4) + socket.inet_aton(address) for address in addresses
        )
        return _HEADER.pack(number, _ANSWERED, 1, len(addresses), 0, 0) + question[_HEADER.size : end] + records


@contextmanager
def name_server() -> Iterator[NameServer]:
    """It answers until the block ends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.bind(("127.0.0.1", 0))
        server = NameServer(opened.getsockname()[1])

        def serve() -> None:
            while True:
                question, sender = opened.recvfrom(4096)
                if not question:
                    return
                opened.sendto(server.answer(question), sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server
        finally:
            opened.sendto(b"", opened.getsockname())
            thread.join()
