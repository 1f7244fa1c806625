"""The HTTP client against a server that is not quite silent, cuts streams, and answers badly."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from wtb_core import clients, errors
from wtb_core.clients import HttpClient


class Server(ThreadingHTTPServer):
    daemon_threads = True
    chunks: list[list[bytes]]
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for chunk in self.server.chunks.pop(0):
            self.wfile.write(chunk)
            self.wfile.flush()

    def do_POST(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<html>a proxy's page</html>")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(server: Server) -> Iterator[HttpClient]:
    client = HttpClient(f"http://127.0.0.1:{server.server_port}")
    yield client
    client.close()


def test_heartbeats_between_events_are_passed_over(server: Server, client: HttpClient) -> None:
    server.chunks = [
        [
            b'id: 1\nevent: t\ndata: {"seq": 1}\n\n',
            b": heartbeat\n\n",
            b'id: 2\nevent: t\ndata: {"seq": 2}\n\n',
            b": heartbeat\n\n",
            b"event: end\ndata: {}\n\n",
        ]
    ]
    assert [event["seq"] for event in client.follow("b", 0)] == [1, 2]


def test_a_stream_that_is_cut_is_taken_up_where_it_was(
    server: Server, client: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "RECONNECT_PAUSE_S", 0)
    server.chunks = [
        [b'id: 1\nevent: t\ndata: {"seq": 1}\n\nid: 2\nevent: t\nda'],
        [b'id: 2\nevent: t\ndata: {"seq": 2}\n\nevent: end\ndata: {}\n\n'],
    ]
    assert [event["seq"] for event in client.follow("b", 0)] == [1, 2]
    assert server.asked == ["/v1/batches/b/events?after=0", "/v1/batches/b/events?after=1"]


def test_an_answer_that_is_no_problem_document_is_still_an_error(
    server: Server, client: HttpClient
) -> None:
    with pytest.raises(errors.RequestRefused, match="the server answered 404: <html>"):
        client.submit({}, None)


def test_nobody_at_the_url_is_unavailable() -> None:
    client = HttpClient("http://127.0.0.1:1")
    with pytest.raises(errors.Unavailable, match="does not answer"):
        client.get_batch("b")
    client.close()
