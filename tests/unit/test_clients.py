"""The HTTP client against a server that is not quite silent, cuts streams, and answers badly."""

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from wtb_core.clients import HttpClient, repeating
from wtb_core.errors import (
    Conflict,
    InvalidRequest,
    InvalidSpec,
    NotFound,
    Problem,
    RequestRefused,
    TooManyPending,
    Unavailable,
)

URL = "http://bench.test"
EVENTS = [{"seq": seq, "type": "ray_batch_test_progress", "payload": {}} for seq in range(1, 7)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(repeating, "RECONNECT_PAUSE_S", 0)
    monkeypatch.setattr(repeating, "RECONNECTS", 3)


def collect(client, stream):
    """The items of a stream, and the client closed."""

    async def read():
        try:
            return [item async for item in stream]
        finally:
            await client.close()

    return asyncio.run(read())


class Server(ThreadingHTTPServer):
    daemon_threads = True
    chunks: list[list[bytes]]
    asked: list[tuple[str, str]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers["Last-Event-ID"]))
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
def client(server: Server) -> HttpClient:
    return HttpClient(f"http://127.0.0.1:{server.server_port}")


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
    assert [event["seq"] for event in collect(client, client.follow("b", 0))] == [1, 2]


def test_a_stream_that_is_cut_is_taken_up_where_it_was(server: Server, client: HttpClient) -> None:
    server.chunks = [
        [b'id: 1\nevent: t\ndata: {"seq": 1}\n\nid: 2\nevent: t\nda'],
        [b'id: 2\nevent: t\ndata: {"seq": 2}\n\nevent: end\ndata: {}\n\n'],
    ]
    assert [event["seq"] for event in collect(client, client.follow("b", 0))] == [1, 2]
    assert server.asked == [("/v1/batches/b/events", "0"), ("/v1/batches/b/events", "1")]


def test_an_answer_that_is_no_problem_document_is_still_an_error(
    server: Server, client: HttpClient
) -> None:
    with pytest.raises(RequestRefused, match="the server answered 404: <html>"):
        asyncio.run(client.submit({}, None))


def make_client(handler):
    return HttpClient(URL, transport=httpx.MockTransport(handler))


def follow(handler, after=0):
    client = make_client(handler)
    return collect(client, client.follow("b-1", after))


def sse(events, *, ended, last=""):
    text = "".join(
        f": heartbeat\n\nid: {e['seq']}\nevent: {e['type']}\ndata: {json.dumps(e)}\n\n"
        for e in events
    )
    text += "event: end\ndata: {}\n\n" if ended else last
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=text)


@pytest.mark.parametrize("size", [1, 2, 4, 6])
def test_a_stream_that_ends_early_is_asked_for_the_rest(size):
    asked = []

    def handle(request):
        after = int(request.headers["Last-Event-ID"])
        asked.append(after)
        return sse(EVENTS[after : after + size], ended=after + size >= len(EVENTS))

    assert follow(handle) == EVENTS
    assert asked == list(range(0, len(EVENTS), size))


def test_a_stream_that_ends_with_an_error_raises_it():
    problem = {"type": "about:blank#not-found", "status": 404, "arguments": ["batch", "b-1"]}

    def handle(_request):
        return sse(EVENTS[:2], ended=False, last=f"event: error\ndata: {json.dumps(problem)}\n\n")

    with pytest.raises(NotFound, match="b-1"):
        follow(handle)


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

    assert follow(handle) == EVENTS


def test_a_server_that_stays_away_is_given_up():
    asked = []

    def handle(request):
        asked.append(request)
        raise httpx.ConnectError("refused")

    with pytest.raises(Unavailable, match="does not answer: refused"):
        follow(handle)
    assert len(asked) == 4


def test_a_stream_that_is_refused_is_not_asked_for_again():
    asked = []

    def handle(request):
        asked.append(request)
        return httpx.Response(404, json={"type": "about:blank#not-found", "detail": "no batch"})

    with pytest.raises(RequestRefused, match="the server answered 404: no batch"):
        follow(handle)
    assert len(asked) == 1


def test_a_laggard_is_sent_away_and_comes_back_at_once_after_the_last_event(monkeypatch):
    pauses = []
    monkeypatch.setattr(repeating.asyncio, "sleep", pauses.append)
    asked = []

    def handle(request):
        after = int(request.headers["Last-Event-ID"])
        asked.append(after)
        ended = after + 2 >= len(EVENTS)
        last = f'event: resume\ndata: {{"after": {after + 2}}}\n\n'
        return sse(EVENTS[after : after + 2], ended=ended, last=last)

    assert follow(handle) == EVENTS
    assert (asked, pauses) == ([0, 2, 4], [])


def test_what_answers_a_stream_with_a_page_is_an_error():
    page = httpx.Response(200, headers={"Content-Type": "text/html"}, text="<html>")

    with pytest.raises(RequestRefused, match="the server answered 200: <html>"):
        follow(lambda _: page)


def test_a_service_that_starts_anew_is_waited_for():
    answers = [
        sse(EVENTS[:3], ended=False),
        httpx.Response(404, text="Path '/v1/b' not found. Ping http://.../-/routes for routes."),
        httpx.Response(503, text="no replica"),
        sse(EVENTS[3:], ended=True),
    ]

    assert follow(lambda _: answers.pop(0)) == EVENTS


def test_executions_come_from_all_pages():
    def handle(request):
        cursor = request.url.params.get("cursor")
        assert request.url.params["include"] == "output"
        pages = {None: ([1, 2], "a"), "a": ([3], "b"), "b": ([], None)}
        items, following = pages[cursor]
        return httpx.Response(200, json={"items": items, "next_cursor": following})

    client = make_client(handle)
    assert collect(client, client.executions("b-1")) == [1, 2, 3]


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
                429, json={"type": "about:blank#too-many-pending", "arguments": [9, 10, 60]}
            ),
            TooManyPending(9, 10, 60),
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
        (httpx.Response(200, text="<html>login"), RequestRefused(200, "<html>login")),
        (httpx.Response(307, text="elsewhere"), RequestRefused(307, "elsewhere")),
    ],
)
def test_a_problem_document_becomes_the_error_it_stands_for(response, error):
    asked = []

    def handle(request):
        asked.append(request)
        return response

    with pytest.raises(type(error)) as caught:
        asyncio.run(make_client(handle).get_batch("b-1"))

    assert caught.value.args == error.args
    assert len(asked) == 1  # none of these gets better by being asked again


@pytest.mark.parametrize("error", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow")])
def test_nobody_at_the_url_is_said_at_once(error):
    asked = []

    def handle(request):
        asked.append(request)
        raise error

    with pytest.raises(Unavailable, match=f"{URL} does not answer: {error}"):
        asyncio.run(make_client(handle).get_batch("b-1"))
    assert len(asked) == 1


@pytest.mark.parametrize("lost", [httpx.ReadError("reset"), httpx.ReadTimeout("slow"), 503])
def test_a_submission_whose_answer_is_lost_is_repeated_with_the_same_key(monkeypatch, lost):
    pauses = []

    async def sleep(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(repeating.asyncio, "sleep", sleep)
    keys = []

    def handle(request):
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 3:
            return httpx.Response(202, json={"batch_id": "b-1"})
        if lost == 503:
            return httpx.Response(503, headers={"Retry-After": "2"})
        raise lost

    assert asyncio.run(make_client(handle).submit({}, None)) == {"batch_id": "b-1"}
    assert len(set(keys)) == 1
    assert pauses == [2, 2] if lost == 503 else [1, 1]


def test_two_submissions_without_a_key_are_two_and_a_given_key_is_sent():
    keys = []

    def handle(request):
        keys.append(request.headers["Idempotency-Key"])
        return httpx.Response(202, json={"batch_id": "b-1"})

    client = make_client(handle)
    for key in (None, None, "mine"):
        asyncio.run(client.submit({}, key))

    assert len(set(keys)) == 3
    assert keys[2] == "mine"


def test_a_service_that_stays_busy_is_given_up(monkeypatch):
    monkeypatch.setattr(repeating, "REPEATS", 1)
    asked = []

    def handle(request):
        asked.append(request)
        return httpx.Response(503, headers={"Retry-After": "0"}, json={"detail": "starting"})

    with pytest.raises(Unavailable, match="starting"):
        asyncio.run(make_client(handle).get_batch("b-1"))
    assert len(asked) == 2


READY = {"ready": True, "problems": [], "project_problems": []}


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (httpx.Response(200, json={"status": "ok"}), "is not WTB Serve"),
        (httpx.Response(200, json={"ready": "yes"}), "is not WTB Serve"),
        (httpx.Response(200, text="<html>an application of somebody"), "is not WTB Serve"),
        (httpx.Response(404, text="Ping http://.../-/routes for"), "without the application"),
    ],
)
def test_what_merely_answers_is_not_taken_for_a_service(response, words):
    with pytest.raises(Unavailable, match=words):
        asyncio.run(make_client(lambda _: response).identify())


@pytest.mark.parametrize("status", [200, 503])
def test_a_service_says_whether_it_is_ready(status):
    state = {**READY, "ready": status == 200}
    client = make_client(lambda _: httpx.Response(status, json=state))

    assert asyncio.run(client.identify()) == state


def test_a_dry_run_that_the_service_does_not_know_is_no_dry_run():
    client = make_client(lambda _: httpx.Response(202, json={"batch_id": "b-9"}))

    with pytest.raises(RequestRefused, match="has submitted batch b-9"):
        asyncio.run(client.expand({}))


@pytest.mark.parametrize(
    ("call", "method", "path", "query", "body"),
    [
        (lambda c: c.expand({"a": 1}), "POST", "/v1/batches", {"dry_run": "true"}, {"a": 1}),
        (
            lambda c: c.retry("b", "latest", "k"),
            "POST",
            "/v1/batches/b/retry",
            {},
            {"project_version": "latest"},
        ),
        (lambda c: c.get_batch("b"), "GET", "/v1/batches/b", {}, None),
        (lambda c: c.get_batch("../x y"), "GET", "/v1/batches/..%2Fx%20y", {}, None),
        (
            lambda c: c.list_batches("failed", None, "a=b", 5, None),
            "GET",
            "/v1/batches",
            {"status": "failed", "label": "a=b", "limit": "5"},
            None,
        ),
        (lambda c: c.comparison("b"), "GET", "/v1/batches/b/comparison", {}, None),
        (lambda c: c.cancel("b", "why"), "POST", "/v1/batches/b/cancel", {}, {"reason": "why"}),
        (lambda c: c.get_execution("b-0"), "GET", "/v1/executions/b-0", {}, None),
        (
            lambda c: c.cancel_execution("b-0", "why"),
            "POST",
            "/v1/executions/b-0/cancel",
            {},
            {"reason": "why"},
        ),
        (
            lambda c: c.read_log("b-0", "stderr", 2),
            "GET",
            "/v1/executions/b-0/logs/stderr",
            {"attempt": "2"},
            None,
        ),
        (
            lambda c: c.read_log("b-0", "stdout", None),
            "GET",
            "/v1/executions/b-0/logs/stdout",
            {},
            None,
        ),
        (lambda c: c.projects(), "GET", "/v1/projects", {"limit": "500"}, None),
    ],
)
def test_each_call_is_the_request_of_the_contract(call, method, path, query, body):
    asked = []

    def handle(request):
        asked.append(request)
        return httpx.Response(200, json={"dry_run": True, "items": [], "next_cursor": None})

    asyncio.run(call(make_client(handle)))

    (request,) = asked
    assert request.method == method
    assert request.url.raw_path.decode().partition("?")[0] == path
    assert dict(request.url.params) == query
    assert (json.loads(request.content) if request.content else None) == body


def test_a_log_comes_byte_for_byte():
    client = make_client(lambda _: httpx.Response(200, content=b"\xff\x1b[31m\n"))

    assert asyncio.run(client.read_log("b-0", "stdout", None)) == b"\xff\x1b[31m\n"


def test_a_token_is_sent_and_a_slash_at_the_end_of_the_url_does_no_harm():
    client = HttpClient(f"{URL}/", "s3cret")

    assert client.url == URL
    assert client._http.headers["Authorization"] == "Bearer s3cret"
    asyncio.run(client.close())


@pytest.mark.parametrize(
    ("arguments", "parameter"),
    [
        (("ftp://bench.test",), "url"),
        (("bench.test:8000",), "url"),
        (("http://",), "url"),
        (("http://[::1",), "url"),
        ((URL, "two\nlines"), "token"),
        ((URL, "t\xf6ken"), "token"),
    ],
)
def test_what_cannot_be_an_address_or_a_token_is_refused_before_anything_is_sent(
    arguments, parameter
):
    with pytest.raises(InvalidRequest) as caught:
        HttpClient(*arguments)
    assert caught.value.parameter == parameter


def test_a_key_that_no_header_can_hold_is_refused():
    client = make_client(lambda _: httpx.Response(500))

    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        asyncio.run(client.submit({}, "a\r\nb"))


def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.chunks = [[b"event: end\ndata: {}\n\n"]]
    client = HttpClient(f"http://127.0.0.1:{server.server_port}")

    assert collect(client, client.follow("b", 0)) == []
