"""Frames on a stream socket between a supervisor and the processes that run user code.

A frame is a four-byte length, a JSON object, and the blobs whose lengths the object's key `blobs`
lists. Nothing is ever unpickled: the other end runs foreign code. Both ends hold the same bounds,
so a sender learns of a frame that is too large and a receiver never buffers one.
"""

import asyncio
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from wtb_core.errors import WireError

MAX_HEADER_BYTES = 4 * 1024**2
MAX_FRAME_BYTES = 256 * 1024**2

Frame = tuple[dict[str, Any], list[bytes]]

_LENGTH = struct.Struct("!I")
_CHUNK_BYTES = 256 * 1024


def encode(
    header: Mapping[str, Any], blobs: Sequence[bytes] = (), limit: int = MAX_FRAME_BYTES
) -> bytes:
    """One frame as bytes.

    Raises:
        WireError: when the frame would be over a bound.
    """
    text = json.dumps({**header, "blobs": [len(blob) for blob in blobs]}).encode("ascii")
    if len(text) > MAX_HEADER_BYTES:
        raise WireError(f"a header of {len(text)} bytes is over the bound of {MAX_HEADER_BYTES}")
    size = sum(map(len, blobs))
    if size > limit:
        raise WireError(f"a message of {size} bytes is over the bound of {limit}")
    return b"".join((_LENGTH.pack(len(text)), text, *blobs))


def _header_size(prefix: bytes) -> int:
    (size,) = _LENGTH.unpack(prefix)
    if size > MAX_HEADER_BYTES:
        raise WireError(f"a header of {size} bytes is over the bound of {MAX_HEADER_BYTES}")
    return size


def _decode_header(text: bytes, limit: int) -> tuple[dict[str, Any], list[int]]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a header is not JSON: {error}") from error
    sizes = header.pop("blobs", None) if isinstance(header, dict) else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise WireError("a header does not list the sizes of its blobs")
    if sum(sizes) > limit:
        raise WireError(f"a message of {sum(sizes)} bytes is over the bound of {limit}")
    return header, sizes


class Channel:
    """The blocking end, for the processes beside user code. Callers keep frames apart by a lock."""

    def __init__(self, sock: socket.socket, limit: int = MAX_FRAME_BYTES) -> None:
        self.sock = sock
        self.limit = limit

    def send(self, header: Mapping[str, Any], *blobs: bytes) -> None:
        """Send one frame; a `WireError` sends nothing."""
        self.sock.sendall(encode(header, blobs, self.limit))

    def receive(self) -> Frame:
        """The next frame.

        Raises:
            EOFError: when the other end has closed.
            WireError: when what arrives is no frame; the channel is then of no further use.
        """
        text = self._exactly(_header_size(self._exactly(_LENGTH.size)))
        header, sizes = _decode_header(text, self.limit)
        return header, [self._exactly(size) for size in sizes]

    def _exactly(self, size: int) -> bytes:
        buffer = bytearray(size)
        view = memoryview(buffer)
        done = 0
        while done < size:
            received = self.sock.recv_into(view[done:])
            if not received:
                raise EOFError("the other end closed the connection")
            done += received
        return bytes(buffer)


class AsyncChannel:
    """The supervisor's end. One task receives; sends are whole frames, one task at a time."""

    def __init__(self, sock: socket.socket, limit: int = MAX_FRAME_BYTES) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.limit = limit
        self._buffer = bytearray()

    async def send(self, header: Mapping[str, Any], *blobs: bytes) -> None:
        """Send one frame; a `WireError` sends nothing."""
        data = encode(header, blobs, self.limit)
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self) -> Frame:
        """The next frame.

        Raises:
            EOFError: when the other end has closed.
            WireError: when what arrives is no frame; the channel is then of no further use.
        """
        text = await self._exactly(_header_size(await self._exactly(_LENGTH.size)))
        header, sizes = _decode_header(text, self.limit)
        return header, [await self._exactly(size) for size in sizes]

    async def receive_with_descriptors(self, count: int) -> tuple[dict[str, Any], list[int]]:
        """The header of the next frame and the descriptors, at most `count`, that came with it.

        Raises:
            EOFError, WireError: as `receive`.
        """
        await wait_readable(self.sock.fileno())
        data, descriptors, _, _ = socket.recv_fds(self.sock, _CHUNK_BYTES, count)
        if not data:
            raise EOFError("the other end closed the connection")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        self._buffer += data
        header, _ = await self.receive()
        return header, descriptors

    def close(self) -> None:
        """Close the socket; nothing may be receiving."""
        self.sock.close()

    async def _exactly(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        while len(self._buffer) < size:
            try:
                data = await loop.sock_recv(self.sock, _CHUNK_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError("the other end closed the connection")
            self._buffer += data
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken


async def wait_readable(descriptor: int) -> None:
    """Wait until reading would not block; for a pidfd, until its process has ended."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(descriptor, note)
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)
