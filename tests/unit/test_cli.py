import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from wtb_core.cli import main

TRIVIAL = Path(__file__).parents[1] / "projects" / "trivial" / "project.yaml"
PLAIN = {
    "project": "trivial",
    "variants": [{"name": "plain"}],
    "cases": [{"input": {"value": 1}, "reference": 0}],
}
COUNTS = {"pending": 0, "running": 0, "succeeded": 2, "failed": 0, "cancelled": 0, "total": 2}
BATCH = {
    "batch_id": "b-1",
    "name": "\x1b[31mred",
    "status": "completed",
    "counts": COUNTS,
    "spec": {},
    "variants": [],
}
COMPARISON = {"metrics": [], "best_variant": None, "best_score": None, "variants": []}
STARTED = {
    "seq": 1,
    "type": "ray_batch_test_started",
    "payload": {"executions": 2, "project": "p", "variants": ["a"], "cases": 2, "repetitions": 1},
}


class Server:
    """Answers from a table and remembers what it was asked."""

    def __init__(self):
        self.answers = {}
        self.asked = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                length = int(self.headers.get("Content-Length", 0))
                path = self.path.partition("?")[0]
                server.asked.append(
                    (self.command, self.path, self.headers, self.rfile.read(length))
                )
                status, kind, body = server.answers.get(
                    (self.command, path), (404, "application/problem+json", b'{"detail": "no"}')
                )
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, method, path, body, status=200, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answers[method, path] = (status, kind, data)

    def answer_batch(self, **fields):
        self.answer("GET", "/v1/batches/b-1", {**BATCH, **fields})
        self.answer("GET", "/v1/batches/b-1/comparison", COMPARISON)
        stream = f"id: 1\nevent: {STARTED['type']}\ndata: {json.dumps(STARTED)}\n\n"
        stream += "event: end\ndata: {}\n\n"
        self.answer("GET", "/v1/batches/b-1/events", stream.encode(), kind="text/event-stream")

    def close(self):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def nobody():
    """A URL at which nothing answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def wtb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("WTB_URL", "WTB_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def wtb(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return wtb


@pytest.fixture
def write(tmp_path):
    def write(spec):
        path = tmp_path / "spec.yaml"
        path.write_text(spec if isinstance(spec, str) else yaml.safe_dump(spec))
        return path

    return write


def test_a_run_in_which_every_execution_succeeded_exits_0_whatever_the_scores(wtb, write):
    done = wtb("run", write(PLAIN), "--project", TRIVIAL, "--data-dir", "data")

    assert (done.exit_code, done.stderr) == (0, "")
    assert "started: 1 executions of trivial" in done.stdout
    assert "0.000 (n 1)" in done.stdout


def test_a_run_in_which_one_failed_exits_1_and_json_is_one_event_a_line(wtb, write):
    spec = {**PLAIN, "variants": [{"name": "bad", "nodes": {"second": "fail"}}]}

    done = wtb("run", write(spec), "--project", TRIVIAL, "--data-dir", "data", "--json")

    assert (done.exit_code, done.stderr) == (1, "")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["type"] == "ray_batch_test_completed"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({**PLAIN, "colour": "red", "repetitions": 0}, ["2 problems", "colour: unknown key"]),
        ({**PLAIN, "project": "other"}, ["there is no project 'other'; there is: trivial"]),
        ("a: [", ["is not YAML"]),
        ("- a", ["a batch spec is a mapping"]),
    ],
)
def test_a_bad_spec_exits_2_and_says_what_is_wrong(wtb, write, spec, words):
    done = wtb("run", write(spec), "--project", TRIVIAL, "--data-dir", "data")

    assert (done.exit_code, done.stdout) == (2, "")
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    "arguments", [["run", "no-such-file.yaml"], ["batch", "show"], ["nonsense"], ["batch", "--x"]]
)
def test_wrong_usage_exits_2(wtb, arguments):
    assert wtb(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["batch", "list"],
        ["batch", "show", "b-1"],
        ["batch", "watch", "b-1", "--json"],
        ["batch", "cancel", "b-1"],
        ["batch", "compare", "b-1"],
        ["project", "list"],
    ],
)
def test_a_server_that_cannot_be_reached_exits_3(wtb, nobody, monkeypatch, arguments):
    monkeypatch.setattr("wtb_core.clients.RECONNECTS", 0)

    done = wtb(*arguments, "--url", nobody)

    assert (done.exit_code, done.stdout) == (3, "")
    assert f"{nobody} does not answer" in done.stderr


def test_a_submitted_batch_is_named(wtb, write, server):
    server.answer("POST", "/v1/batches", {"batch_id": "b-1"}, status=202)

    done = wtb("batch", "submit", write(PLAIN), "--url", server.url, "--idempotency-key", "k")

    assert done.exit_code == 0
    assert done.stdout == f"batch_id: b-1\nurl: {server.url}/v1/batches/b-1\n"
    (_, _, headers, body) = server.asked[0]
    assert json.loads(body) == PLAIN
    assert headers["Idempotency-Key"] == "k"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, 0),
        ({"counts": {**COUNTS, "succeeded": 1, "failed": 1}}, 1),
        ({"status": "cancelled"}, 1),
        ({"status": "failed"}, 1),
    ],
)
def test_watching_a_submitted_batch_exits_by_its_result(wtb, write, server, fields, code):
    server.answer("POST", "/v1/batches", {"batch_id": "b-1"}, status=202)
    server.answer_batch(**fields)

    done = wtb("batch", "submit", write(PLAIN), "--watch", "--url", server.url)

    assert (done.exit_code, done.stderr) == (code, "")
    assert "started: 2 executions of p" in done.stdout


def test_watching_with_json_prints_events_and_nothing_else(wtb, server):
    server.answer_batch()

    done = wtb("batch", "watch", "b-1", "--json", "--url", server.url)

    assert done.exit_code == 0
    assert [json.loads(line) for line in done.stdout.splitlines()] == [STARTED]


def test_a_refused_spec_exits_2_with_all_its_problems(wtb, write, server):
    problem = {
        "type": "about:blank#invalid-spec",
        "detail": "the spec has 2 problems",
        "arguments": [
            [["cases[0].input", "required"], ["colour", "\x1b[31munknown key"]],
        ],
    }
    server.answer("POST", "/v1/batches", problem, status=422)

    done = wtb("batch", "submit", write(PLAIN), "--url", server.url)

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the spec has 2 problems:\n  cases[0].input: required\n  colour: unknown key\n"
    )


def test_a_service_that_is_busy_counts_as_unreachable(wtb, server):
    server.answer("GET", "/v1/batches", {"detail": "starting"}, status=503)

    done = wtb("batch", "list", "--url", server.url)

    assert (done.exit_code, done.stderr) == (3, "error: starting; try again in 1 s\n")


def test_users_text_is_cleaned_in_lists_and_left_alone_in_json(wtb, server):
    project = {
        "name": "p",
        "version": None,
        "source": "/p",
        "problems": ["\x1b[2Jboom"],
    }
    server.answer("GET", "/v1/batches", {"items": [BATCH], "next_cursor": None})
    server.answer("GET", "/v1/projects", {"items": [project]})
    server.answer_batch()

    listed = wtb("batch", "list", "--url", server.url)
    shown = wtb("batch", "show", "b-1", "--url", server.url)
    projects = wtb("project", "list", "--url", server.url)
    raw = wtb("batch", "list", "--json", "--url", server.url)

    assert listed.stdout == "b-1  completed  2/2 succeeded  red\n"
    assert "name: red\n" in shown.stdout
    assert projects.stdout == "p  unusable  /p\n  problem: boom\n"
    assert json.loads(raw.stdout)["items"] == [BATCH]
    for done in (listed, shown, projects, raw):
        assert done.exit_code == 0
        assert "\x1b" not in done.stdout


def test_cancelling_says_whether_anything_changed(wtb, server):
    server.answer("POST", "/v1/batches/b-1/cancel", {"changed": False, "status": "completed"})

    done = wtb("batch", "cancel", "b-1", "--reason", "enough", "--json", "--url", server.url)

    assert json.loads(done.stdout) == {"batch_id": "b-1", "changed": False}
    assert json.loads(server.asked[0][3]) == {"reason": "enough"}


def test_the_url_and_the_token_may_come_from_the_environment(wtb, server, monkeypatch):
    monkeypatch.setenv("WTB_URL", server.url)
    monkeypatch.setenv("WTB_TOKEN", "s3cret")
    server.answer("GET", "/v1/batches/b-1/comparison", COMPARISON)

    done = wtb("batch", "compare", "b-1", "--json")

    assert json.loads(done.stdout) == COMPARISON
    assert server.asked[0][2]["Authorization"] == "Bearer s3cret"
