"""Routes over a stand-in for the ingress: parameters, bodies, refusals."""

import asyncio

import pytest
from asgi import MAX_BODY_BYTES, FakeIngress, connect

from deployments import bodies
from deployments.http_errors import STATUS
from wtb_core.errors import (
    Conflict,
    DiskFull,
    NotForkable,
    NotFound,
    NotRetryable,
    TooManyPending,
    Unavailable,
    WtbError,
)

RECEIPT = {
    "batch_id": "b-1",
    "status": "pending",
    "executions": 2,
    "created": True,
    "links": {"self": "/v1/batches/b-1"},
}


def send(ingress, method, path, **options):
    async def run():
        async with connect(ingress) as http:
            return await http.request(method, path, **options)

    return asyncio.run(run())


def post(ingress, path, content=b"", kind="application/json", **headers):
    sent = {"content-type": kind, **headers} if kind else headers
    return send(ingress, "POST", path, content=content, headers=sent)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("application/json", b'{"project": "p"}'),
        ("application/json; charset=utf-8", b'\xef\xbb\xbf{"project": "p"}'),
        ("application/yaml", b"project: p"),
        ("application/x-yaml", b"project: p"),
        ("text/yaml", b"project: p"),
    ],
)
def test_a_spec_comes_as_json_or_yaml(kind, content):
    ingress = FakeIngress(submit_batch=RECEIPT)

    answer = post(ingress, "/v1/batches", content, kind, **{"idempotency-key": "k"})

    assert (answer.status_code, answer.headers["location"]) == (202, "/v1/batches/b-1")
    assert "created" not in answer.json()
    name, arguments, keywords = ingress.calls[0]
    assert (name, arguments) == ("submit_batch", ({"project": "p"}, "k"))
    assert keywords == {"submitted_by": None}


def test_a_dry_run_stores_nothing():
    ingress = FakeIngress(submit_batch={"dry_run": True})

    answer = post(ingress, "/v1/batches?dry_run=true", b"{}")

    assert (answer.status_code, answer.json()) == (200, {"dry_run": True})
    assert ingress.calls == [("submit_batch", ({},), {"dry_run": True})]


BOMB = b"a: &a [x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 9)) for n in range(98, 112)
)


@pytest.mark.parametrize(
    ("content", "kind", "status", "says"),
    [
        (b"{", "application/json", 400, "line 1"),
        (b"", "application/json", 400, "nothing"),
        (b'{"a": NaN}', "application/json", 400, "no JSON value"),
        (b'{"a": 1e999}', "application/json", 400, "finite"),
        (b'{"a": %s}' % (b"9" * 5_000), "application/json", 400, "64 bits"),
        (b'{"a": 1, "a": 2}', "application/json", 400, "twice"),
        (b'{"a": "\\ud800"}', "application/json", 400, "surrogate"),
        (b"\xff\xfe", "application/json", 400, "UTF-8"),
        (b"[" * 50_000, "application/json", 400, "deep"),
        (b"a: [", "application/yaml", 400, "line"),
        (b"a: 1\na: 2", "application/yaml", 400, "twice"),
        (b"a: \x00", "application/yaml", 400, ""),
        (b"a: &a [*a]", "application/yaml", 400, ""),
        (BOMB, "application/yaml", 400, ""),
        (b"a: .inf", "application/yaml", 400, "finite"),
        (b"a: !!python/object/apply:os.system [x]", "application/yaml", 400, ""),
        (b"--- 1\n--- 2", "application/yaml", 400, ""),
        (b"[" * 50_000, "application/yaml", 400, ""),
        (b"{}", "text/plain", 415, "application/json"),
        (b"{}", "multipart/form-data", 415, "application/json"),
        (b"{}", None, 415, "application/json"),
        (b" " * (MAX_BODY_BYTES + 1), "application/json", 413, "larger than"),
    ],
)
def test_a_body_that_is_no_document_never_reaches_the_ingress(content, kind, status, says):
    ingress = FakeIngress(submit_batch=RECEIPT)

    answer = post(ingress, "/v1/batches", content, kind)

    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert says in answer.json()["detail"]
    assert ingress.calls == []


def test_a_body_that_grows_too_large_without_saying_so_is_cut_off():
    async def endless():
        while True:
            yield b" " * 50_000

    answer = send(
        FakeIngress(),
        "POST",
        "/v1/batches",
        content=endless(),
        headers={"content-type": "application/json"},
    )

    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("path", "name", "arguments"),
    [
        ("/v1/batches/b-1/cancel", "cancel_batch", ("b-1", "cancelled on request")),
        ("/v1/executions/b-1-0/cancel", "cancel_execution", ("b-1-0", "cancelled on request")),
    ],
)
@pytest.mark.parametrize("kind", [None, "application/json"])
def test_a_cancel_needs_no_body(path, name, arguments, kind):
    ingress = FakeIngress(**{name: {"changed": True}})

    answer = post(ingress, path, kind=kind)

    assert answer.status_code == 202
    assert ingress.calls == [(name, arguments, {})]


def test_cancelling_what_has_ended_is_200():
    ingress = FakeIngress(cancel_batch={"changed": False})
    assert post(ingress, "/v1/batches/b-1/cancel", b'{"reason": "r"}').status_code == 200
    assert ingress.calls == [("cancel_batch", ("b-1", "r"), {})]


@pytest.mark.parametrize(
    ("path", "content", "status", "where"),
    [
        ("/v1/batches/b-1/cancel", b'{"reason": 1}', 422, "reason"),
        ("/v1/batches/b-1/cancel", b'{"reason": ""}', 422, "reason"),
        ("/v1/batches/b-1/cancel", b'{"surprise": 1}', 422, "surprise"),
        ("/v1/batches/b-1/cancel", b"[]", 422, "body"),
        ("/v1/batches/b-1/retry", b'{"project_version": "new"}', 422, "project_version"),
        ("/v1/executions/b-1-0/cancel", b'{"reason": null}', 422, "reason"),
        ("/v1/executions/b-1-0/cancel", b"{" + b" " * 70_000, 413, None),
        ("/v1/batches/b-1/cancel", b"reason=x", 400, None),
    ],
)
def test_a_small_body_is_checked_too(path, content, status, where):
    ingress = FakeIngress()

    answer = post(ingress, path, content)

    assert answer.status_code == status, answer.text
    if where:
        assert [item["path"] for item in answer.json()["problems"]] == [where]
    assert ingress.calls == []


def test_a_form_cannot_cancel():
    answer = post(FakeIngress(), "/v1/batches/b-1/cancel", kind="application/x-www-form-urlencoded")
    assert answer.status_code == 415


def test_a_retry_answers_as_a_submission():
    ingress = FakeIngress(retry_batch=RECEIPT | {"reused": 1, "retry_of": "b-0"})

    answer = post(ingress, "/v1/batches/b-0/retry", b"project_version: latest", "text/yaml")

    assert (answer.status_code, answer.headers["location"]) == (202, "/v1/batches/b-1")
    assert ingress.calls == [("retry_batch", ("b-0", "latest", None), {"submitted_by": None})]


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (NotFound("batch", "b-1"), 404, {}),
        (Conflict("k", "b-1"), 409, {}),
        (NotRetryable("b-1", "it is running"), 409, {}),
        (NotForkable("c-1", "it is a subgraph's"), 409, {}),
        (TooManyPending(9, 10, 7), 429, {"retry-after": "7"}),
        (Unavailable("the collector is away", 2), 503, {"retry-after": "2"}),
        (DiskFull("/srv/wtb", "7 bytes are free", 30), 503, {"retry-after": "30"}),
    ],
)
def test_an_error_of_ours_is_a_problem_document(error, status, headers):
    answer = post(FakeIngress(retry_batch=error), "/v1/batches/b-1/retry")

    assert answer.status_code == status
    assert answer.json()["detail"] == str(error)
    assert answer.json()["arguments"] == list(error.args)
    for name, value in headers.items():
        assert answer.headers[name] == value


def test_every_error_that_a_client_can_meet_has_a_status():
    """What never leaves a process of ours has none: it would be a fault."""
    inside = {"SetupError", "StaleEpoch", "FenceError", "ThreadRefused", "GraphError", "WireError"}
    inside |= {"InvalidOutput", "IllegalTransition", "RequestRefused", "InvalidDocument"}
    inside |= {"InvalidHistory", "TrackingError", "NotResumable"}

    assert {cls.__name__ for cls in WtbError.__subclasses__()} - inside == {
        cls.__name__ for cls in STATUS
    } - {"DiskFull"}  # which is an Unavailable of a kind of its own


def test_a_fault_of_ours_says_nothing_of_its_inside():
    answer = send(FakeIngress(list_batches=KeyError("a secret")), "GET", "/v1/batches")

    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("/v1/batches?limit=0", "limit"),
        ("/v1/batches?limit=1001", "limit"),
        ("/v1/batches?limit=-1", "limit"),
        ("/v1/batches?limit=" + "9" * 5_000, "limit"),
        ("/v1/batches?limit=1e3", "limit"),
        ("/v1/batches?cursor=x", "cursor"),
        ("/v1/batches?cursor=-1", "cursor"),
        ("/v1/batches?cursor=" + "9" * 40, "cursor"),
        ("/v1/batches?status=nosuch", "status"),
        ("/v1/batches?label=x", "label"),
        ("/v1/batches?surprise=1", "surprise"),
        ("/v1/batches/b-1?surprise=1", "surprise"),
        ("/v1/batches/b-1/events?after=-1", "after"),
        ("/v1/batches/b-1/events?after=99999999999999999999", "after"),
        ("/v1/batches/b-1/events?wait_ms=5001", "wait_ms"),
        ("/v1/batches/b-1/executions?include=nosuch", "include"),
        ("/v1/batches/b-1/comparison?format=xml", "format"),
        ("/v1/executions/b-1-0/nodes?attempt=0", "attempt"),
        ("/v1/executions/b-1-0/logs/stdout?attempt=x", "attempt"),
        ("/v1/projects?limit=x", "limit"),
        ("/v1/pool/events?limit=0", "limit"),
    ],
)
def test_a_wrong_parameter_is_named(path, where):
    ingress = FakeIngress()

    answer = send(ingress, "GET", path)

    assert answer.status_code == 422, answer.text
    assert [item["path"] for item in answer.json()["problems"]] == [where]
    assert ingress.calls == []


@pytest.mark.parametrize("value", ["x", "-1", "", "1.5", "²"])
def test_a_last_event_id_that_is_none_is_refused(value):
    answer = send(
        FakeIngress(),
        "GET",
        "/v1/batches/b-1/events",
        headers={"accept": "text/event-stream", "last-event-id": value.encode()},
    )
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["path"] == "Last-Event-ID"


def test_a_method_that_a_route_does_not_have_is_405_with_those_it_has():
    answer = send(FakeIngress(), "DELETE", "/v1/batches")

    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, POST"
    assert answer.json()["status"] == 405


def test_a_log_is_an_attachment_of_plain_text():
    log = {"attempt": 2, "stream": "stderr", "text": "<b>\x1b[1m", "truncated": False}

    answer = send(FakeIngress(read_log=log), "GET", "/v1/executions/b-1-0/logs/stderr?attempt=2")

    assert answer.text == log["text"]
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="b-1-0-2-stderr.txt"'
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_there_are_two_logs():
    assert send(FakeIngress(), "GET", "/v1/executions/b-1-0/logs/stdin").status_code == 404


@pytest.fixture
def small_bounds(monkeypatch):
    monkeypatch.setattr(bodies, "LARGE_BODY_BYTES", 10)
    monkeypatch.setattr(bodies, "MAX_LARGE_BODIES", 1)
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.2)


def test_a_body_that_does_not_come_is_given_up_and_its_share_given_back(small_bounds):
    async def slow():
        yield b" " * 20
        await asyncio.sleep(5)

    headers = {"content-type": "application/json"}
    answer = send(FakeIngress(), "POST", "/v1/batches", content=slow(), headers=headers)

    assert answer.status_code == 408
    assert bodies._Share.in_use == 0


def test_only_so_many_large_bodies_are_read_at_a_time(small_bounds, monkeypatch):
    monkeypatch.setattr(bodies._Share, "in_use", 1)

    answer = post(FakeIngress(submit_batch=RECEIPT), "/v1/batches", b'{"project": "a long name"}')

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    small = post(FakeIngress(submit_batch=RECEIPT), "/v1/batches", b"{}")
    assert small.status_code == 202


def test_an_encoded_body_is_refused():
    headers = {"content-encoding": "gzip"}
    assert post(FakeIngress(), "/v1/batches", b"{}", **headers).status_code == 415


def test_a_reason_is_plain_text():
    answer = post(FakeIngress(), "/v1/batches/b-1/cancel", b'{"reason": "a\\u001bb"}')
    assert answer.status_code == 422
