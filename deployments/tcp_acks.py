"""How many bytes the other end of a TCP connection has acknowledged, as the kernel says it.

Any process in the connection's network namespace may ask (`sock_diag(7)`, `tcpi_bytes_acked` since
Linux 4.1). So a replica on the node of Serve's proxy sees how far a client has come.
"""

import socket
import struct

Address = tuple[str, int]

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_INET_DIAG_INFO = 2
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")
"""`struct nlmsghdr`: length, type, flags, sequence, port id."""
_ATTRIBUTE = struct.Struct("=HH")
_INET_DIAG_MSG_BYTES = 72
_BYTES_ACKED_AT = 120
"""Where `struct tcp_info` holds `tcpi_bytes_acked`, a u64."""
_ANSWER_BYTES = 8192


def find_acked_bytes(local: Address, remote: Address) -> int | None:
    """Bytes that `remote` has acknowledged since the connection began.

    None when there is no such connection here or the kernel does not tell.
    """
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    try:
        ends = struct.pack(
            "!HH16s16s",
            local[1],
            remote[1],
            socket.inet_pton(family, local[0]),
            socket.inet_pton(family, remote[0]),
        )
        answer = _ask(family, ends)
    except (OSError, AttributeError):  # a host name, another system, a sandbox without netlink
        return None
    return _read_bytes_acked(answer)


def _ask(family: int, ends: bytes) -> bytes:
    """The kernel's answer to a `struct inet_diag_req_v2` for one socket."""
    wanted = 1 << (_INET_DIAG_INFO - 1)
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, wanted, 0, _ANY_STATE)
    request += ends + struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
    size = _HEADER.size + len(request)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + request)
        return kernel.recv(_ANSWER_BYTES)


def _read_bytes_acked(answer: bytes) -> int | None:
    size, kind, *_ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None
    at = _HEADER.size + _INET_DIAG_MSG_BYTES
    while at < size:
        length, attribute = _ATTRIBUTE.unpack_from(answer, at)
        if attribute == _INET_DIAG_INFO and length >= _ATTRIBUTE.size + _BYTES_ACKED_AT + 8:
            found: tuple[int] = struct.unpack_from(
                "=Q", answer, at + _ATTRIBUTE.size + _BYTES_ACKED_AT
            )
            return found[0]
        at += (length + 3) & ~3
    return None
