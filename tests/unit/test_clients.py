"""The HTTP client against a server that is not quite silent, cuts streams, and answers badly."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from wtb_core import clients
from wtb_core.clients import HttpClient
from wtb_core.errors import Conflict, InvalidSpec, NotFound, Problem, RequestRefused, Unavailable

URL = "http://bench.test"
EVENTS = [{"seq": seq, "type": "ray_batch_test_progress", "payload": {}} for seq in range(1, 7)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(clients, "RECONNECT_PAUSE_S", 0)
    monkeypatch.setattr(clients, "RECONNECTS", 3)


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


def test_a_stream_that_is_cut_is_taken_up_where_it_was(server: Server, client: HttpClient) -> None:
    server.chunks = [
        [b'id: 1\nevent: t\ndata: {"seq": 1}\n\nid: 2\nevent: t\nda'],
        [b'id: 2\nevent: t\ndata: {"seq": 2}\n\nevent: end\ndata: {}\n\n'],
    ]
    assert [event["seq"] for event in client.follow("b", 0)] == [1, 2]
    assert server.asked == ["/v1/batches/b/events?after=0", "/v1/batches/b/events?after=1"]


def test_an_answer_that_is_no_problem_document_is_still_an_error(
    server: Server, client: HttpClient
) -> None:
    with pytest.raises(RequestRefused, match="the server answered 404: <html>"):
        client.submit({}, None)


def make_client(handler):
    client = HttpClient(URL)
    client._http.close()
    client._http = httpx.Client(base_url=URL, transport=httpx.MockTransport(handler))
    return client


def sse(events, *, ended):
    text = "".join(
        f": heartbeat\n\nid: {e['seq']}\nevent: {e['type']}\ndata: {json.dumps(e)}\n\n"
        for e in events
    )
    text += "event: end\ndata: {}\n\n" if ended else ""
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=text)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_a_stream_that_ends_early_is_asked_for_the_rest(size):
    asked = []

    def handle(request):
        after = int(request.url.params["after"])
        asked.append(after)
        return sse(EVENTS[after : after + size], ended=after + size >= len(EVENTS))

    assert list(make_client(handle).follow("b-1", 0)) == EVENTS
    assert asked == list(range(0, len(EVENTS), size))


def test_a_stream_that_says_resume_is_asked_for_the_rest():
    """The hint ends a stream like a cut does; it is no event."""
    hint = 'event: resume\nretry: 200\ndata: {"after": 3}\n\n'
    answers = [sse(EVENTS[:3], ended=False).text + hint, sse(EVENTS[3:], ended=True).text]
    asked = []

    def handle(request):
        asked.append(request.url.params["after"])
        return httpx.Response(
            200, headers={"Content-Type": "text/event-stream"}, text=answers.pop(0)
        )

    assert list(make_client(handle).follow("b-1", 0)) == EVENTS
    assert asked == ["0", "3"]


def test_a_stream_that_ends_with_an_error_raises_it():
    problem = {"type": "about:blank#not-found", "status": 404, "arguments": ["batch", "b-1"]}

    def handle(_request):
        text = sse(EVENTS[:2], ended=False).text + f"event: error\ndata: {json.dumps(problem)}\n\n"
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=text)

    events = make_client(handle).follow("b-1", 0)
    assert [next(events), next(events)] == EVENTS[:2]
    with pytest.raises(NotFound, match="b-1"):
        next(events)


def test_a_server_that_is_away_for_a_moment_is_asked_again():
    answers = [
        httpx.ConnectError("refused"),
        sse(EVENTS[:3], ended=False),
        httpx.ReadError("reset"),
        httpx.ReadError("reset"),
        httpx.ReadError("reset"),
        sse(EVENTS[3:], ended=True),
    ]

    def handle(_request):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert list(make_client(handle).follow("b-1", 0)) == EVENTS


def test_a_server_that_stays_away_is_given_up():
    asked = []

    def handle(request):
        asked.append(request)
        raise httpx.ConnectError("refused")

    with pytest.raises(Unavailable, match="does not answer: refused"):
        list(make_client(handle).follow("b-1", 0))
    assert len(asked) == 4


def test_a_stream_that_is_refused_is_not_asked_for_again():
    asked = []

    def handle(request):
        asked.append(request)
        return httpx.Response(404, json={"type": "about:blank#not-found", "detail": "no batch"})

    with pytest.raises(RequestRefused, match="the server answered 404: no batch"):
        list(make_client(handle).follow("b-1", 0))
    assert len(asked) == 1


def test_executions_come_from_all_pages():
    def handle(request):
        cursor = request.url.params.get("cursor")
        assert request.url.params["include"] == "output"
        pages = {None: ([1, 2], "a"), "a": ([3], "b"), "b": ([], None)}
        items, following = pages[cursor]
        return httpx.Response(200, json={"items": items, "next_cursor": following})

    assert list(make_client(handle).executions("b-1")) == [1, 2, 3]


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (
            httpx.Response(
                422,
                json={
                    "type": "about:blank#invalid-spec",
                    "arguments": [[["cases", "required"]]],
                },
            ),
            InvalidSpec([Problem("cases", "required")]),
        ),
        (
            httpx.Response(503, headers={"Retry-After": "7"}, json={"detail": "starting"}),
            Unavailable("starting", 7),
        ),
        (
            httpx.Response(
                409, json={"type": "about:blank#conflict", "arguments": ["the key", "b-1"]}
            ),
            Conflict("the key", "b-1"),
        ),
        (
            httpx.Response(
                404, json={"type": "about:blank#not-found", "detail": "none", "arguments": [1] * 9}
            ),
            RequestRefused(404, "none"),
        ),
        (httpx.Response(409, json={"detail": "other spec"}), RequestRefused(409, "other spec")),
        (httpx.Response(502, text="<html>bad gateway"), RequestRefused(502, "<html>bad gateway")),
        (httpx.Response(500, json=["no", "problem"]), RequestRefused(500, '["no","problem"]')),
    ],
)
def test_a_problem_document_becomes_the_error_it_stands_for(response, error):
    with pytest.raises(type(error)) as caught:
        make_client(lambda _: response).get_batch("b-1")

    assert caught.value.args == error.args


def test_a_server_that_does_not_answer_is_unavailable():
    def handle(_request):
        raise httpx.ConnectTimeout("too slow")

    with pytest.raises(Unavailable, match=f"{URL} does not answer: too slow"):
        make_client(handle).get_batch("b-1")


def test_a_token_is_sent_and_a_slash_at_the_end_of_the_url_does_no_harm():
    client = HttpClient(f"{URL}/", "s3cret")

    assert client.url == URL
    assert client._http.headers["Authorization"] == "Bearer s3cret"
    client.close()
