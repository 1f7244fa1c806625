import json
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from click.testing import CliRunner
from rich.text import Text

import wtb_core
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
    "project": "p",
    "project_version": "0123456789abcdef",
    "status": "completed",
    "retry_of": None,
    "labels": {"team": "search"},
    "submitted_by": None,
    "created_at": "2030-01-01T00:00:00.000Z",
    "started_at": None,
    "finished_at": None,
    "counts": COUNTS,
    "progress": {"elapsed_ms": 1500, "remaining_ms": 0, "per_s": 2.5},
    "spec": {},
    "variants": [],
}
COMPARISON = {"metrics": [], "best_variant": None, "best_score": None, "variants": []}
ROW = {
    "variant": "a",
    "n": 2,
    "succeeded": 2,
    "failed": {},
    "cancelled": 0,
    "scores": {"m": {"mean": 0.5, "n": 2}},
    "overall_score": {"mean": 0.5, "n": 2},
}
FAILURE = {
    "kind": "error",
    "reason": "it raised",
    "error_type": "ValueError",
    "message": "no luck",
    "node": "second",
}
EXECUTION = {
    "execution_id": "b-1-0",
    "batch_id": "b-1",
    "variant": "a",
    "case_id": "\x1b[2Jone",
    "repetition": 0,
    "status": "failed",
    "attempt": 1,
    "failure": FAILURE,
    "scores": {"m": None},
    "score_comments": {"m": "so \x1b[1mso"},
    "score_errors": {},
    "overall_score": None,
    "duration_ms": 12,
    "output": {"text": "\x9b31m"},
    "attempts": [{"attempt": 1, "status": "failed", "failure": FAILURE}],
}
PROJECT = {
    "name": "p",
    "version": "0123456789abcdef",
    "source": "/p/project.yaml",
    "graphs": {"default": {"kind": "state_graph", "nodes": ["first", "second"]}},
    "nodes": {"second": ["double", "negate"]},
    "evaluators": ["fine"],
    "problems": [],
}
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
    "arguments",
    [
        ["run", "no-such-file.yaml"],
        ["batch", "show"],
        ["nonsense"],
        ["batch", "--x"],
        ["batch", "--status", "odd"],
        ["batch", "list", "--limit", "0"],
        ["batch", "export", "b-1", "--format", "xml"],
        ["batch", "--url", "ftp://nowhere"],
        ["execution"],
        ["execution", "logs", "b-1-0", "--attempt", "0"],
        ["project", "check", "no-such-folder"],
        ["serve", "no-such-config.yaml"],
        ["demo"],
    ],
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
        ["batch", "retry", "b-1"],
        ["batch", "export", "b-1"],
        ["execution", "show", "b-1-0"],
        ["execution", "logs", "b-1-0"],
        ["execution", "cancel", "b-1-0"],
        ["project", "list"],
        ["project", "show", "p"],
    ],
)
def test_a_server_that_cannot_be_reached_exits_3(wtb, nobody, arguments):
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


def test_a_service_that_is_busy_counts_as_unreachable(wtb, server, monkeypatch):
    monkeypatch.setattr("wtb_core.clients.repeating.REPEATS", 0)
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
    server.answer("GET", "/v1/projects", {"items": [project], "next_cursor": None})
    server.answer_batch()

    listed = wtb("batch", "list", "--url", server.url)
    shown = wtb("batch", "show", "b-1", "--url", server.url)
    projects = wtb("project", "list", "--url", server.url)
    raw = wtb("batch", "list", "--json", "--url", server.url)

    assert listed.stdout == "b-1  completed  2/2 succeeded  p  red\n"
    assert "name          red\n" in shown.stdout
    assert projects.stdout == "p  unusable  /p\n  problem: boom\n"
    assert json.loads(raw.stdout)["items"] == [BATCH]
    for done in (listed, shown, projects, raw):
        assert done.exit_code == 0
        assert "\x1b" not in done.stdout


def test_a_noun_alone_lists(wtb, server):
    server.answer("GET", "/v1/batches", {"items": [BATCH], "next_cursor": "7"})
    server.answer("GET", "/v1/projects", {"items": [PROJECT], "next_cursor": None})

    page = wtb("batch", "--url", server.url, "--status", "failed", "--label", "a=b")
    as_json = wtb("batch", "--json", "--url", server.url)
    projects = wtb("project", "--url", server.url)

    assert page.stdout.startswith("b-1  completed")
    assert page.stderr == "more: --cursor 7\n"
    assert server.asked[0][1] == "/v1/batches?status=failed&label=a%3Db&limit=100"
    assert json.loads(as_json.stdout)["next_cursor"] == "7"
    assert as_json.stderr == ""
    assert projects.stdout == "p  0123456789ab  /p/project.yaml\n"
    assert wtb("batch", "--help").exit_code == 0


def test_a_batch_is_shown_with_what_went_wrong(wtb, server):
    server.answer_batch(counts={**COUNTS, "succeeded": 0, "failed": 2}, retry_of="b-0")
    rows = [{**ROW, "failed": {"error": 1, "crash": 1}}, {**ROW, "failed": {"error": 2}}]
    server.answer("GET", "/v1/batches/b-1/comparison", {**COMPARISON, "variants": rows})

    shown = wtb("batch", "show", "b-1", "--url", server.url)
    raw = wtb("batch", "show", "b-1", "--json", "--url", server.url)

    assert "status        completed\n" in shown.stdout
    assert "project       p @ 0123456789ab\n" in shown.stdout
    assert "retry of      b-0\n" in shown.stdout
    assert "labels        team=search\n" in shown.stdout
    assert "2 of 2 ended: 0 succeeded, 2 failed, 0 cancelled; 0 running" in shown.stdout
    assert "failures      crash 1, error 3\n" in shown.stdout
    assert "started" not in shown.stdout
    assert json.loads(raw.stdout)["project_version"] == "0123456789abcdef"


def test_a_part_of_a_spec_is_submitted(wtb, write, server):
    server.answer("POST", "/v1/batches", {"batch_id": "b-1"}, status=202)
    spec = {
        **PLAIN,
        "variants": [{"name": "plain"}, {"name": "other"}],
        "cases": [{"input": n} for n in range(5)],
        "labels": {"kept": "yes"},
    }

    arguments = ["--variant", "pl*", "--case", "[2-4]", "--first", "2", "--repetitions", "3"]
    arguments += ["--name", "part", "--label", "team=search=now"]
    done = wtb("batch", "submit", write(spec), *arguments, "--url", server.url)

    assert (done.exit_code, done.stderr) == (0, "")
    sent = json.loads(server.asked[0][3])
    assert [variant["name"] for variant in sent["variants"]] == ["plain"]
    assert sent["cases"] == [{"id": 2, "input": 1}, {"id": 3, "input": 2}]
    assert (sent["repetitions"], sent["name"]) == (3, "part")
    assert sent["labels"] == {"kept": "yes", "team": "search=now"}


@pytest.mark.parametrize("label", ["team", "=search"])
def test_a_label_is_a_key_and_a_value(wtb, write, label):
    done = wtb("batch", "submit", write(PLAIN), "--label", label)

    assert done.exit_code == 2
    assert "is not KEY=VALUE" in done.stderr


def test_a_pattern_that_matches_nothing_exits_2_and_says_what_there_is(wtb, write, server):
    done = wtb("batch", "submit", write(PLAIN), "--variant", "nix*", "--url", server.url)

    assert (done.exit_code, server.asked) == (2, [])
    assert done.stderr == "error: --variant: nothing matches 'nix*'; there is: plain\n"


def test_a_dry_run_shows_the_plan_and_submits_nothing(wtb, write, server):
    plan = {
        "dry_run": True,
        "project": "p",
        "project_version": "0123456789abcdef",
        "executions": 4,
        "cases": 2,
        "repetitions": 1,
        "evaluators": ["fine"],
        "baseline": "base",
        "variants": [
            {"name": "base"},
            {"name": "new", "graph": "react", "nodes": {"a": "b"}, "config": {"n": [1]}},
        ],
        "spec": {},
    }
    server.answer("POST", "/v1/batches", plan)

    done = wtb("batch", "submit", write(PLAIN), "--dry-run", "--url", server.url)
    raw = wtb("batch", "submit", write(PLAIN), "--dry-run", "--json", "--url", server.url)

    assert [path for _, path, *_ in server.asked] == ["/v1/batches?dry_run=true"] * 2
    assert "│ * base  │ nothing" in done.stdout
    assert "│   new   │ graph=react, nodes.a=b, config.n=[1]" in done.stdout
    assert "4 executions of p @ 0123456789ab: 2 variants x 2 cases x 1 repetitions" in done.stdout
    assert json.loads(raw.stdout) == plan


def test_a_watch_that_is_interrupted_says_how_to_go_on(wtb, server, monkeypatch):
    server.answer_batch()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wtb_core.testbench.TestBench.events", interrupt)

    done = wtb("batch", "watch", "b-1", "--url", server.url)

    assert done.exit_code == 130
    assert done.stderr == "the batch goes on; follow it again: wtb batch watch b-1\n"


def test_a_run_that_is_interrupted_does_not_go_on(wtb, write, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wtb_core.testbench.TestBench.events", interrupt)

    done = wtb("run", write(PLAIN), "--project", TRIVIAL, "--data-dir", "data")

    assert (done.exit_code, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(("option", "version"), [([], "same"), (["--latest"], "latest")])
def test_a_retry_is_a_batch_of_its_own(wtb, server, option, version):
    server.answer("POST", "/v1/batches/b-0/retry", {"batch_id": "b-1"}, status=202)
    server.answer_batch()

    done = wtb("batch", "retry", "b-0", *option, "--json", "--url", server.url)
    watched = wtb("batch", "retry", "b-0", *option, "--watch", "--url", server.url)

    assert json.loads(done.stdout) == {
        "batch_id": "b-1",
        "retry_of": "b-0",
        "url": f"{server.url}/v1/batches/b-1",
    }
    assert json.loads(server.asked[0][3]) == {"project_version": version}
    assert (watched.exit_code, "Comparison" in watched.stdout) == (0, True)


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("csv", "variant,n,succeeded,failed,cancelled,m,m.n,overall_score,overall.n\r\n"),
        ("md", "| variant | n | succeeded | failed | m | overall |\n"),
        ("json", '{"metrics": ["m"]'),
        ("table", "Comparison"),
    ],
)
def test_a_comparison_has_the_form_that_is_asked_for(wtb, server, format_, text):
    comparison = {**COMPARISON, "metrics": ["m"], "variants": [ROW]}
    server.answer("GET", "/v1/batches/b-1/comparison", comparison)

    done = wtb("batch", "compare", "b-1", "--format", format_, "--url", server.url)

    assert done.exit_code == 0
    assert done.stdout_bytes.decode().startswith(text)


def test_an_export_goes_to_a_file_or_to_standard_output(wtb, server, tmp_path):
    server.answer_batch()
    page = {"items": [EXECUTION], "next_cursor": None}
    server.answer("GET", "/v1/batches/b-1/executions", page)

    shown = wtb("batch", "export", "b-1", "--format", "jsonl", "--url", server.url)
    done = wtb("batch", "export", "b-1", "-o", "out.json", "--url", server.url)

    assert [json.loads(line) for line in shown.stdout.splitlines()] == [EXECUTION]
    assert done.stdout == "batch_id: b-1\nformat: json\nfile: out.json\n"
    written = json.loads((tmp_path / "out.json").read_text())
    assert written == {"batch": BATCH, "comparison": COMPARISON, "executions": [EXECUTION]}


def test_a_file_that_cannot_be_written_exits_1_with_one_message(wtb, server):
    server.answer_batch()
    server.answer("GET", "/v1/batches/b-1/executions", {"items": [], "next_cursor": None})

    done = wtb("batch", "export", "b-1", "-o", "no/such/folder/out", "--url", server.url)

    assert done.exit_code == 1
    assert done.stderr.startswith("error: [Errno 2] No such file or directory")
    assert len(done.stderr.splitlines()) == 1


def test_an_execution_is_shown_without_what_its_text_would_do_to_the_terminal(wtb, server):
    server.answer("GET", "/v1/executions/b-1-0", EXECUTION)

    done = wtb("execution", "show", "b-1-0", "--url", server.url)
    raw = wtb("execution", "show", "b-1-0", "--json", "--url", server.url)

    assert "\x1b" not in done.stdout
    assert "failure       error: it raised\n" in done.stdout
    assert "raised        ValueError in second: no luck\n" in done.stdout
    assert "  attempt 1: failed: it raised\n" in done.stdout
    assert '"text": "31m"' in done.stdout
    assert json.loads(raw.stdout) == EXECUTION
    assert "\x9b" not in raw.stdout


def test_logs_are_cleaned_unless_they_are_wanted_as_they_are(wtb, server):
    log = b"\x1b[31mred\xff\n"
    server.answer("GET", "/v1/executions/b-1-0/logs/stderr", log, kind="text/plain")

    arguments = ["execution", "logs", "b-1-0", "--stderr", "--url", server.url]
    assert wtb(*arguments).stdout_bytes == "red\ufffd\n".encode()
    assert wtb(*arguments, "--raw").stdout_bytes == log
    assert json.loads(wtb(*arguments, "--json").stdout)["text"] == "\x1b[31mred\ufffd\n"
    wtb(*arguments, "--attempt", "2")
    assert server.asked[-1][1] == "/v1/executions/b-1-0/logs/stderr?attempt=2"


def test_one_execution_is_cancelled(wtb, server):
    server.answer("POST", "/v1/executions/b-1-0/cancel", {"changed": True}, status=202)

    done = wtb("execution", "cancel", "b-1-0", "--reason", "enough", "--url", server.url)

    assert done.stdout == "execution_id: b-1-0\nchanged: true\n"
    assert json.loads(server.asked[0][3]) == {"reason": "enough"}


def test_a_project_is_shown_with_what_it_offers(wtb, server):
    server.answer("GET", "/v1/projects", {"items": [PROJECT], "next_cursor": None})

    done = wtb("project", "show", "p", "--url", server.url)
    missing = wtb("project", "show", "q", "--url", server.url)

    assert done.stdout.splitlines() == [
        "p  0123456789ab  /p/project.yaml",
        "  graph default: state_graph; nodes: first, second",
        "  node second: double, negate",
        "  evaluators: fine",
    ]
    assert (missing.exit_code, missing.stderr) == (2, "error: there is no project 'q'\n")


class Checking(ModuleType):
    """In the place of `wtb_core.checking`."""

    MISSING = object()

    def __init__(self, *, ok):
        super().__init__("wtb_core.checking")
        self.ok = ok
        self.asked = []

    def check_project(self, path, *, graph, given, spec):
        self.asked.append((path, graph, given, spec))
        return self

    def model_dump(self, *, mode):
        return {"ok": self.ok, "mode": mode}

    def render_check(self, report, console):
        console.print("all is well" if report.ok else "something is wrong")


@pytest.mark.parametrize("ok", [True, False])
def test_a_project_is_checked_where_it_lies(wtb, tmp_path, monkeypatch, ok):
    checking = Checking(ok=ok)
    monkeypatch.setitem(sys.modules, "wtb_core.checking", checking)
    monkeypatch.setattr(wtb_core, "checking", checking, raising=False)
    spec = tmp_path / "batch.yaml"
    spec.write_text("project: p")

    plain = wtb("project", "check", tmp_path)
    full = wtb(
        *["project", "check", tmp_path, "--graph", "g", "--input", '{"a": 1}'],
        *["--spec", spec, "--json"],
    )
    bad = wtb("project", "check", tmp_path, "--input", "{")

    assert plain.stdout == ("all is well\n" if ok else "something is wrong\n")
    assert plain.exit_code == full.exit_code == (0 if ok else 1)
    assert json.loads(full.stdout) == {"ok": ok, "mode": "json"}
    assert checking.asked == [
        (tmp_path, "default", Checking.MISSING, None),
        (tmp_path, "g", {"a": 1}, {"project": "p"}),
    ]
    assert (bad.exit_code, "is not JSON" in bad.stderr) == (2, True)


def test_a_pipe_that_is_closed_ends_the_command_quietly(server, tmp_path):
    server.answer("GET", "/v1/batches", {"items": [BATCH] * 5000, "next_cursor": None})
    code = "from wtb_core.cli import main; main()"
    arguments = [sys.executable, "-c", code, "batch", "list", "--url", server.url]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline().startswith(b"b-1")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


@pytest.mark.parametrize("width", ["30", "200"])
def test_tables_fit_a_narrow_terminal_and_have_no_colour_where_none_is_wanted(
    wtb, server, monkeypatch, width
):
    server.answer("GET", "/v1/batches/b-1/comparison", {**COMPARISON, "variants": [ROW]})
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", width)

    done = wtb("batch", "compare", "b-1", "--url", server.url)

    lines = Text.from_ansi(done.stdout).plain.splitlines()
    assert max(map(len, lines)) <= int(width)
    assert "…" not in done.stdout  # nothing is cut
    assert not re.search(r"\x1b\[[\d;]*\b[349][0-7]m", done.stdout)


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
