import asyncio
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wtb_core.errors import WireError
from wtb_core.sandbox import wire

headers = st.dictionaries(
    st.text().filter(lambda key: key != "blobs"), st.none() | st.integers() | st.text()
)


@given(
    frames=st.lists(st.tuples(headers, st.lists(st.binary(max_size=300), max_size=4)), max_size=5)
)
def test_frames_arrive_as_they_were_sent_at_both_kinds_of_end(frames):
    async def receive(sock):
        channel = wire.AsyncChannel(sock)
        return [await channel.receive() for _ in frames]

    for read in (
        lambda sock: [wire.Channel(sock).receive() for _ in frames],
        lambda sock: asyncio.run(receive(sock)),
    ):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            for header, blobs in frames:
                wire.Channel(ours).send(header, *blobs)
            assert read(theirs) == frames


def test_a_frame_larger_than_any_buffer_passes_both_ways():
    blob = bytes(range(256)) * 40_000
    ours, theirs = socket.socketpair()

    async def run():
        channel = wire.AsyncChannel(ours)
        await channel.send({"n": 1}, blob, b"")
        answer = await channel.receive()
        channel.close()
        return answer

    def echo():
        channel = wire.Channel(theirs)
        header, blobs = channel.receive()
        channel.send(header, *blobs)

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        assert asyncio.run(run()) == ({"n": 1}, [blob, b""])
    finally:
        thread.join()
        theirs.close()


def test_a_sender_refuses_what_is_over_the_bound():
    with pytest.raises(WireError, match="11 bytes is over the bound of 10"):
        wire.encode({}, [b"x" * 11], limit=10)
    with pytest.raises(WireError, match="header"):
        wire.encode({"x": "y" * wire.MAX_HEADER_BYTES})


BAD = {
    "no JSON": b"\0\0\0\2{]",
    "no object": b"\0\0\0\2[]",
    "no sizes": b"\0\0\0\2{}",
    "a negative size": b"\0\0\0\x0e" + b'{"blobs":[-1]}',
    "a true size": b"\0\0\0\x10" + b'{"blobs":[true]}',
    "a blob over the bound": b"\0\0\0\x0f" + b'{"blobs":[101]}',
    "a header over the bound": b"\xff\xff\xff\xff{",
    "deep nesting": (100_000).to_bytes(4, "big") + b"[" * 100_000,
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_a_receiver_refuses_what_is_no_frame_before_it_buffers_it(data):
    async def receive(sock):
        await wire.AsyncChannel(sock, limit=100).receive()

    for read in (
        lambda sock: wire.Channel(sock, limit=100).receive(),
        lambda sock: asyncio.run(receive(sock)),
    ):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.sendall(data)
            with pytest.raises(WireError):
                read(theirs)


@pytest.mark.parametrize("data", [b"", b"\0\0", b"\0\0\0\2{", b"\0\0\0\x0e" + b'{"blobs": [9]}x'])
def test_a_closed_connection_is_the_end_even_in_a_frame(data):
    ours, theirs = socket.socketpair()
    with theirs:
        ours.sendall(data)
        ours.close()
        with pytest.raises(EOFError):
            wire.Channel(theirs).receive()
