"""Both faces of a bench over each way to one: HTTP, a Serve handle, the sequential runner."""

import asyncio
import contextlib
import inspect
import json
import logging
import threading
import time
from typing import NamedTuple

import httpx
import pytest

from wtb_core import testbench
from wtb_core.clients import HandleClient, HttpClient, LocalClient, repeating
from wtb_core.clients import handle as handle_module
from wtb_core.errors import InvalidSpec, NotFound, Problem, RequestRefused, Unavailable
from wtb_core.loops import LoopThread
from wtb_core.testbench import AsyncTestBench, TestBench

EVENTS = [{"seq": seq, "type": "ray_batch_test_progress", "payload": {}} for seq in range(1, 7)]
BATCH = {"batch_id": "b-1", "status": "completed", "counts": {"succeeded": 2, "total": 2}}
COMPARISON = {"metrics": [], "variants": [], "best_variant": None}


def public(cls):
    return {name: item for name, item in vars(cls).items() if not name.startswith("_")}


def test_both_faces_have_the_same_methods_with_the_same_parameters():
    one, other = public(TestBench), public(AsyncTestBench)

    assert one.keys() == other.keys()
    for name in one:
        left = inspect.signature(getattr(TestBench, name)).parameters
        right = inspect.signature(getattr(AsyncTestBench, name)).parameters
        assert list(left) == list(right), name
        for key, parameter in left.items():
            assert parameter.default == right[key].default, (name, key)
            assert parameter.kind == right[key].kind, (name, key)
            if key != "on_event":  # one of them may also be given a coroutine function
                assert parameter.annotation == right[key].annotation, (name, key)
    for cls in (TestBench, AsyncTestBench):
        assert cls.__test__ is False


# -- HTTP --------------------------------------------------------------------------------------


def answer(request):
    path = request.url.path
    if path == "/v1/batches/b-1/events":
        after = int(request.headers["Last-Event-ID"])
        text = "".join(f"id: {e['seq']}\ndata: {json.dumps(e)}\n\n" for e in EVENTS[after:])
        text += "event: end\ndata: {}\n\n"
        return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text=text)
    answers = {
        "/v1/batches": {"batch_id": "b-1"},
        "/v1/batches/b-1": BATCH,
        "/v1/batches/b-1/comparison": COMPARISON,
        "/v1/batches/b-1/executions": {"items": [{"execution_id": "b-1-0"}], "next_cursor": None},
        "/v1/projects": {"items": [{"name": "p"}], "next_cursor": None},
    }
    if path in answers:
        return httpx.Response(200, json=answers[path])
    if path == "/v1/executions/b-1-0/logs/stdout":
        return httpx.Response(200, content=b"caf\xe9\n")
    return httpx.Response(
        404, json={"type": "about:blank#not-found", "arguments": ["batch", path[12:]]}
    )


def make_async_bench():
    return AsyncTestBench(HttpClient("http://b", transport=httpx.MockTransport(answer)), "here")


@pytest.fixture
def bench():
    with TestBench(make_async_bench()) as bench:
        yield bench


def test_a_batch_is_run_and_read(bench):
    seen = []

    def on_event(event):
        seen.append((event, threading.current_thread()))
        bench.batch("b-1")  # the bench may be used meanwhile

    result = bench.run_batch({"project": "p"}, on_event)

    assert [event for event, _ in seen] == EVENTS
    assert {thread for _, thread in seen} == {threading.current_thread()}
    assert (result.batch_id, result.succeeded) == ("b-1", True)
    assert result.executions == [{"execution_id": "b-1-0"}]
    assert result.comparison == COMPARISON
    assert bench.where == "here"


def test_the_asynchronous_face_does_the_same_and_may_await_what_it_tells():
    async def run():
        async with make_async_bench() as bench:
            plain, awaited = [], []

            async def on_event(event):
                await asyncio.sleep(0)
                awaited.append(event)

            first = await bench.run_batch({"project": "p"}, plain.append)
            second = await bench.run_batch({"project": "p"}, on_event)
            assert plain == awaited == EVENTS
            assert first == second
            return [event async for event in bench.events("b-1", after=4)]

    assert asyncio.run(run()) == EVENTS[4:]


def test_the_plain_face_works_where_an_event_loop_runs(bench):
    async def run():
        return list(bench.events("b-1")), bench.batch("b-1")

    assert asyncio.run(run()) == (EVENTS, BATCH)


def test_events_that_are_left_early_leave_nothing_open(bench):
    events = bench.events("b-1")
    assert next(events) == EVENTS[0]
    events.close()

    assert list(bench.events("b-1", after=5)) == EVENTS[5:]


def test_a_log_is_text_and_also_what_it_was(bench):
    assert bench.log("b-1-0") == "caf\ufffd\n"
    assert bench.log_bytes("b-1-0") == b"caf\xe9\n"


def test_a_project_is_found_by_its_name(bench):
    assert bench.project("p") == {"name": "p"}
    with pytest.raises(NotFound, match="no project 'q'"):
        bench.project("q")


def test_errors_pass_through_and_a_closed_bench_says_so(bench):
    with pytest.raises(NotFound):
        bench.batch("nosuch")
    bench.close()
    bench.close()
    with pytest.raises(RuntimeError, match="this bench is closed"):
        bench.batch("b-1")


def test_a_wait_that_is_interrupted_ends_what_it_waited_for():
    loop = LoopThread("test")
    ended = []

    async def wait():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    class Interrupted:
        def __init__(self, future):
            self.future = future

        def result(self):
            time.sleep(0.05)
            raise KeyboardInterrupt

        def cancel(self):
            return self.future.cancel()

    original = asyncio.run_coroutine_threadsafe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            asyncio, "run_coroutine_threadsafe", lambda w, lo: Interrupted(original(w, lo))
        )
        with pytest.raises(KeyboardInterrupt):
            loop.run(wait())
    assert ended == [True]
    loop.close()


# -- open --------------------------------------------------------------------------------------


@pytest.fixture
def places(monkeypatch, tmp_path):
    """What answers at which URL, and the tokens that were sent there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WTB_URL", raising=False)
    monkeypatch.setenv("WTB_TOKEN", "s3cret")
    answers, tokens = {}, []

    def handle(request):
        tokens.append(request.headers.get("Authorization"))
        if request.url.host not in answers:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, json=answers[request.url.host])

    def make(url, token=None):
        return HttpClient(url, token, transport=httpx.MockTransport(handle))

    monkeypatch.setattr(testbench, "HttpClient", make)
    return answers, tokens


READY = {"ready": True, "problems": [], "project_problems": []}


def test_a_service_on_this_machine_is_taken_and_sent_the_token(places, caplog):
    answers, tokens = places
    answers["127.0.0.1"] = READY
    caplog.set_level(logging.INFO, "wtb")

    with TestBench.open() as bench, contextlib.suppress(Exception):
        assert bench.where == "http://127.0.0.1:8000"
        bench.batch("b-1")

    assert tokens == [None, "Bearer s3cret"]
    assert caplog.messages == ["using the service at http://127.0.0.1:8000"]


@pytest.mark.parametrize("there", [None, {"status": "ok"}])
def test_without_a_service_it_is_the_sequential_runner_and_says_so(places, caplog, there):
    answers, tokens = places
    if there is not None:
        answers["127.0.0.1"] = there

    with TestBench.open() as bench:
        assert bench.where == "the sequential runner in .wtb/local"

    assert tokens == [None]
    (message,) = caplog.messages
    assert message.endswith("; using the sequential runner in .wtb/local")
    assert ("does not answer" if there is None else "is not WTB Serve") in message


def test_a_named_service_is_taken_or_nothing(places, monkeypatch):
    answers, _ = places
    monkeypatch.setenv("WTB_URL", "http://elsewhere:9/")
    before = threading.active_count()
    with pytest.raises(Unavailable, match="http://elsewhere:9 does not answer"):
        TestBench.open()
    assert threading.active_count() == before
    answers["elsewhere"] = READY

    async def run():
        async with await AsyncTestBench.open() as bench:
            return bench.where

    assert asyncio.run(run()) == "http://elsewhere:9"


# -- a Serve handle ----------------------------------------------------------------------------


class Response:
    def __init__(self, result):
        self.outcome = result
        self.cancelled = False

    def __await__(self):
        async def wait():
            if isinstance(self.outcome, Exception):
                raise self.outcome
            if self.outcome is None:
                await asyncio.sleep(60)
            return self.outcome

        return wait().__await__()

    def cancel(self):
        self.cancelled = True


class Stream:
    def __init__(self, items):
        self.items = list(items)
        self.cancelled = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.items:
            raise StopAsyncIteration
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def cancel(self):
        self.cancelled = True


class Handle:
    """Answers each method from its list of answers and remembers the calls."""

    def __init__(self, **answers):
        self.answers = answers
        self.calls = []
        self.responses = []

    def options(self, *, stream):
        assert stream
        return self

    def __getattr__(self, method):
        handle = self

        class Method:
            def remote(self, *arguments):
                handle.calls.append((method, *arguments))
                answer = handle.answers[method].pop(0)
                response = Stream(answer) if isinstance(answer, list) else Response(answer)
                handle.responses.append(response)
                return response

        return Method()


@pytest.fixture
def _impatient(monkeypatch):
    monkeypatch.setattr(repeating, "RECONNECT_PAUSE_S", 0)
    monkeypatch.setattr(repeating, "MAX_PAUSE_S", 0)


ENDED = {"items": [], "next_after": 6, "ended": True}


def test_a_handle_is_awaited_and_its_stream_is_followed_to_the_end_of_the_batch():
    handle = Handle(
        submit_batch=[{"batch_id": "b-1"}, {"dry_run": True}],
        stream_events=[EVENTS[:2], EVENTS[2:]],
        read_events=[{"items": EVENTS[2:3], "next_after": 3, "ended": False}, ENDED],
        cancel_batch=[{"changed": True}],
        cancel_execution=[{"changed": False}],
        retry_batch=[{"batch_id": "b-2"}],
        read_log=[{"attempt": 1, "stream": "stderr", "text": "é", "truncated": False}],
        list_batches=[{"items": [], "next_cursor": None}],
        list_projects=[{"items": [{"name": "p"}], "next_cursor": None}],
    )
    with TestBench.from_handle(handle) as bench:
        assert bench.where == "a Serve handle"
        assert bench.submit({"a": 1}, "k") == "b-1"
        assert bench.expand({"a": 1}) == {"dry_run": True}
        assert list(bench.events("b-1")) == EVENTS
        assert bench.cancel("b-1", "why") is True
        assert bench.cancel_execution("b-1-0", "why") is False
        assert bench.retry("b-1", "latest", "k2") == "b-2"
        assert bench.log("b-1-0", "stderr", 1) == "é"
        assert bench.batches(label="a=b")["items"] == []
        assert bench.projects() == [{"name": "p"}]

    assert handle.calls == [
        ("submit_batch", {"a": 1}, "k"),
        ("submit_batch", {"a": 1}, None, True),
        ("stream_events", "b-1", 0),
        ("read_events", "b-1", 2, 1, 0),
        ("stream_events", "b-1", 2),
        ("read_events", "b-1", 6, 1, 0),
        ("cancel_batch", "b-1", "why"),
        ("cancel_execution", "b-1-0", "why"),
        ("retry_batch", "b-1", "latest", "k2"),
        ("read_log", "b-1-0", "stderr", 1),
        ("list_batches", None, None, "a=b", 100, None),
        ("list_projects", 500, None),
    ]


def make_ray_error(name, *bases):
    return type(name, bases or (Exception,), {"__module__": "ray.exceptions"})


@pytest.mark.usefixtures("_impatient")
def test_errors_over_a_handle_are_ours():
    task_error = make_ray_error("RayTaskError")
    missing = type("RayTaskError(NotFound)", (task_error, NotFound), {})("batch", "b-1")
    missing.cause = NotFound("batch", "b-1")
    handle = Handle(
        get_batch=[
            missing,
            NotFound("batch", "b-1"),
            make_ray_error("ActorDiedError")("gone"),
            task_error("Traceback:\n  deep\nKeyError: 'x'"),
            ZeroDivisionError("of nobody"),
        ]
    )
    client = HandleClient(handle)

    def ask():
        return asyncio.run(client.get_batch("b-1"))

    for _ in range(2):
        with pytest.raises(NotFound) as caught:
            ask()
        assert type(caught.value) is NotFound
    with pytest.raises(Unavailable, match="get_batch got no answer: ActorDiedError"):
        ask()
    with pytest.raises(RequestRefused, match="get_batch failed: KeyError: 'x'"):
        ask()
    with pytest.raises(ZeroDivisionError):
        ask()


@pytest.mark.usefixtures("_impatient")
def test_a_handle_that_does_not_answer_is_given_up_and_its_call_cancelled(monkeypatch):
    monkeypatch.setattr(handle_module, "SUBMIT_TIMEOUT_S", 0.05)
    handle = Handle(submit_batch=[None])

    with pytest.raises(Unavailable, match=r"submit_batch got no answer in 0\.05 s"):
        asyncio.run(HandleClient(handle).submit({}, None))
    assert handle.responses[0].cancelled


@pytest.mark.usefixtures("_impatient")
def test_a_handles_stream_that_breaks_is_taken_up_after_the_last_event():
    broken = make_ray_error("ActorDiedError")("gone")
    handle = Handle(stream_events=[[*EVENTS[:3], broken], EVENTS[3:]], read_events=[ENDED])

    with TestBench.from_handle(handle) as bench:
        assert list(bench.events("b-1")) == EVENTS

    assert [call for call in handle.calls if call[0] == "stream_events"] == [
        ("stream_events", "b-1", 0),
        ("stream_events", "b-1", 3),
    ]
    assert all(stream.cancelled for stream in handle.responses if isinstance(stream, Stream))


# -- the sequential runner ---------------------------------------------------------------------


class Receipt(NamedTuple):
    batch_id: str
    status: str
    executions: int
    created: bool


class Runner:
    """What `LocalClient` needs of the sequential runner."""

    def __init__(self):
        self.ran = []
        self.events = []
        self.status = "running"
        self.closed = False

    async def submit(self, spec, idempotency_key):
        return Receipt("b-1", "pending", 1, idempotency_key != "seen")

    async def retry(self, batch_id, project_version, idempotency_key):
        assert (batch_id, project_version, idempotency_key) == ("b-1", "latest", "k")
        return Receipt("b-2", "pending", 1, True)

    async def run(self, batch_id):
        self.ran.append(batch_id)
        self.events = list(EVENTS)
        self.status = "completed"

    async def expand(self, spec):
        if not spec:
            raise InvalidSpec([Problem("cases", "required")])
        return {"dry_run": True}

    async def cancel(self, batch_id, reason):
        return reason == "why"

    async def cancel_execution(self, execution_id, reason):
        return reason == "why"

    async def projects(self):
        return [{"name": "p"}]

    def read_batch(self, batch_id):
        return {"batch_id": batch_id, "status": self.status}

    def read_batches(self, status, project, label, limit, cursor):
        return {"items": [status, project, label, limit, cursor], "next_cursor": None}

    def read_execution(self, execution_id):
        return {"execution_id": execution_id, "status": "cancelled"}

    def read_log(self, execution_id, stream, attempt):
        return {"attempt": 1, "stream": stream, "text": "written", "truncated": False}

    def follow(self, batch_id, after, check):
        while not self.events:
            check()
            time.sleep(0.01)
        yield from self.events[after:]

    async def close(self):
        self.closed = True


def make_local():
    runner = Runner()
    return runner, TestBench(AsyncTestBench(LocalClient(runner), "local"))


def test_the_sequential_runner_offers_what_a_service_does():
    runner, bench = make_local()
    with bench:
        assert bench.submit({"a": 1}) == "b-1"
        assert list(bench.events("b-1")) == EVENTS
        assert bench.retry("b-1", "latest", "k") == "b-2"
        assert bench.expand({"a": 1}) == {"dry_run": True}
        with pytest.raises(InvalidSpec):
            bench.expand({})
        assert bench.cancel("b-1", "why") is True
        assert bench.cancel_execution("b-1-0") is False
        assert bench.execution("b-1-0")["status"] == "cancelled"
        assert bench.log("b-1-0") == "written"
        assert bench.batches("failed", limit=3)["items"] == ["failed", None, None, 3, None]
        assert bench.project("p") == {"name": "p"}
        list(bench.events("b-2"))
    assert runner.ran == ["b-1", "b-2"]
    assert runner.closed


def test_a_batch_that_an_earlier_runner_left_is_run_on_when_it_is_followed():
    runner, bench = make_local()
    with bench:
        assert bench.submit({"a": 1}, "seen") == "b-1"
        assert runner.ran == []
        assert list(bench.events("b-1")) == EVENTS
    assert runner.ran == ["b-1"]


def test_closing_ends_those_who_follow():
    runner, bench = make_local()
    started = threading.Event()

    async def run(_batch_id):
        started.set()
        await asyncio.sleep(60)

    runner.run = run
    caught = []

    def follow():
        try:
            list(bench.events("b-1"))
        except (Unavailable, RuntimeError) as error:
            caught.append(error)

    follower = threading.Thread(target=follow)
    follower.start()
    assert started.wait(5)
    bench.close()
    follower.join(5)

    assert not follower.is_alive()
    assert len(caught) == 1
