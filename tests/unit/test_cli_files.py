"""`wtb execution checkpoints, files, diff and fork`, over a stand-in for the service."""

import io
import json
from urllib.parse import parse_qs, urlsplit

import pytest
from rich.console import Console
from test_cli import EXECUTION, Server, wtb  # noqa: F401 - a fixture

from wtb_core.display import print_changes, print_diff

ITEM = {
    "path": "src/gcd.py",
    "change": "modified",
    "kind": "file",
    "size_before": 10,
    "size_after": 12,
    "mode_before": "0644",
    "mode_after": "0600",
    "binary": False,
    "diff": "--- a/src/gcd.py\n+++ b/src/gcd.py\n@@ -1 +1 @@\n-\told\n+\tnew \x1b[2J[red]\n",
    "diff_truncated": False,
}
ITEMS = [
    ITEM,
    {**ITEM, "path": "old.txt", "change": "deleted", "mode_after": None, "size_after": None},
    {**ITEM, "path": "bin\x1b[31m", "change": "created", "binary": True, "diff": None},
    {**ITEM, "path": "large", "mode_after": "0644", "diff": None, "diff_truncated": True},
    {**ITEM, "path": "cut", "mode_after": "0644", "diff": "+x\n", "diff_truncated": True},
    {**ITEM, "path": "src", "kind": "directory", "change": "created", "diff": ""},
]
PAGE = {
    "execution_id": "b-1-0",
    "attempt": 1,
    "from": "start",
    "to": "final",
    "items": ITEMS,
    "next_cursor": None,
    "counts": {"created": 2, "modified": 3, "deleted": 1},
}


def checkpoint(name, ns="", *, forkable=True):
    return {
        "checkpoint_id": name,
        "ns": ns,
        "step": 1,
        "source": "loop",
        "created_at": "2030-01-01T00:00:00.000Z",
        "forkable": forkable,
    }


CHECKPOINTS = [
    checkpoint("c-0"),
    checkpoint("c-1\x1b[1m"),
    checkpoint("s-1", "inner:\x9b31m", forkable=False),
    checkpoint("c-2", forkable=False),
    checkpoint("c-3"),
]


@pytest.fixture
def server():
    server = Server()
    page = {"execution_id": "b-1-0", "attempt": 1, "items": CHECKPOINTS, "next_cursor": None}
    server.answer("GET", "/v1/executions/b-1-0/checkpoints", page)
    server.answer("GET", "/v1/executions/b-1-0/files", PAGE)
    server.answer("POST", "/v1/executions/b-1-0/fork", {"batch_id": "b-2"}, status=202)
    yield server
    server.close()


@pytest.fixture
def run(wtb, server):  # noqa: F811
    return lambda *arguments: wtb("execution", *arguments, "--url", server.url)


def asked(server, number=-1):
    method, path, headers, body = server.asked[number]
    query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
    return method, urlsplit(path).path, query, headers, body


def test_checkpoints_are_listed_with_the_numbers_that_a_fork_takes(run):
    done = run("checkpoints", "b-1-0")

    assert (done.exit_code, done.stderr) == (0, "")
    lines = [line.split()[:2] for line in done.stdout.splitlines()]
    assert lines == [["0", "c-0"], ["1", "c-1"], ["in", "inner:31m:"], ["2", "c-2"], ["3", "c-3"]]
    assert done.stdout.count("its files are not known") == 1
    assert json.loads(run("checkpoints", "b-1-0", "--json").stdout) == CHECKPOINTS


def test_changed_files_are_listed_with_marks(run, server):
    done = run("files", "b-1-0", "--from", "base", "--attempt", "2")

    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "M  src/gcd.py  10 to 12 bytes",
        "D  old.txt  10 bytes",
        "A  bin  10 to 12 bytes",
        "M  large  10 to 12 bytes",
        "M  cut  10 to 12 bytes",
        "A  src  directory",
        "2 created, 3 modified, 1 deleted; start to final",
    ]
    query = asked(server)[2]
    assert (query["from"], query["to"], query["attempt"]) == ("base", "final", "2")
    assert "diff" not in query


def test_a_diff_is_as_patch_wants_it_and_clean(run, server):
    done = run("diff", "b-1-0", "--to", "c-1")

    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:6] == [
        "--- a/src/gcd.py",
        "+++ b/src/gcd.py",
        "@@ -1 +1 @@",
        "-\told",
        "+\tnew [red]",
        "The mode of src/gcd.py was 0644 and is 0600",
    ]
    assert "\x1b" not in done.stdout
    assert "The binary file bin was created\n" in done.stdout
    assert "large is too large for a diff\n" in done.stdout
    assert "+x\nThe diff of cut is cut\n" in done.stdout
    assert done.stdout.endswith("The directory src was created\n")
    query = asked(server)[2]
    assert (query["diff"], query["to"]) == ("true", "c-1")


@pytest.mark.parametrize(
    ("paths", "shown"),
    [
        (["old.txt"], ["old.txt"]),
        (["src/"], ["src/gcd.py", "src"]),
        (["sr"], []),
        (["large", "cut"], ["large", "cut"]),
    ],
)
def test_a_diff_of_some_paths_and_of_what_is_below_them(run, paths, shown):
    done = run("diff", "b-1-0", *paths, "--json")
    assert [item["path"] for item in json.loads(done.stdout)["items"]] == shown


def test_a_diff_is_coloured_in_a_terminal_only():
    out = io.StringIO()
    print_diff(PAGE, Console(file=out, force_terminal=True, no_color=False, _environ={}))
    assert "\x1b[31m-\told\x1b[0m" in out.getvalue()
    assert "\x1b[32m+\tnew [red]\x1b[0m" in out.getvalue()

    plain = io.StringIO()
    print_diff(PAGE, Console(file=plain, force_terminal=True, no_color=True))
    assert "\x1b" not in plain.getvalue()


def test_a_long_path_stays_whole():
    out = io.StringIO()
    page = {**PAGE, "items": [{**ITEM, "path": "d/" * 500}]}
    print_changes(page, Console(file=out, width=40))
    assert "d/" * 500 in out.getvalue()


def test_a_file_is_written_where_it_was_asked_for(run, server, tmp_path):
    server.answer("GET", "/v1/executions/b-1-0/files/src/a%20%FF", b"\0\xff", kind="x/y")

    done = run(
        "files", "b-1-0", "--get", b"src/a \xff".decode(errors="surrogateescape"), "-o", "got"
    )

    assert (done.exit_code, done.stderr) == (0, "")
    assert (tmp_path / "got").read_bytes() == b"\0\xff"
    assert "size_bytes: 2" in done.stdout
    assert asked(server)[2] == {"at": "final"}


def test_a_file_goes_to_standard_output_as_it_is(run, server):
    server.answer("GET", "/v1/executions/b-1-0/files/a", b"\0\xff", kind="x/y")
    done = run("files", "b-1-0", "--get", "a", "--to", "c-1", "-o", "-")
    assert done.stdout_bytes == b"\0\xff"
    assert asked(server)[2] == {"at": "c-1"}


def test_a_file_that_is_not_there_leaves_no_file(run, tmp_path):
    done = run("files", "b-1-0", "--get", "nosuch", "-o", "got")
    assert done.exit_code == 2
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("named", "meant"),
    [
        ("c-x", "c-x"),
        ("first", "c-0"),
        ("last", "c-3"),
        ("0", "c-0"),
        ("2", "c-2"),
        ("-1", "c-3"),
        ("-3", "c-1\x1b[1m"),
    ],
)
def test_a_fork_starts_from_an_id_or_a_number_of_the_root(run, server, named, meant):
    done = run("fork", "b-1-0", "--checkpoint", named)

    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(asked(server)[4])["checkpoint_id"] == meant
    assert done.stdout.splitlines()[:2] == ["batch_id: b-2", "forked_from: b-1-0"]


@pytest.mark.parametrize("named", ["4", "-5"])
def test_a_number_that_no_checkpoint_has_is_wrong_usage(run, server, named):
    done = run("fork", "b-1-0", "--checkpoint", named)
    assert done.exit_code == 2
    assert "the execution has 4" in done.stderr
    assert all(method == "GET" for method, *_ in server.asked)


def test_a_fork_is_sent_with_what_it_changes(run, server, tmp_path):
    (tmp_path / "state.json").write_text('{"tries": 3}')

    done = run(
        *("fork", "b-1-0", "--checkpoint", "c-1", "--attempt", "2", "--idempotency-key", "k"),
        *("--node", "propose=flip", "--node", "check=slow", "--state", "@state.json"),
        *("--config", "depth=3", "--config", "model=small", "--config", 'list=["a=b"]'),
    )

    assert (done.exit_code, done.stderr) == (0, "")
    _, _, _, headers, body = asked(server)
    assert headers["Idempotency-Key"] == "k"
    assert json.loads(body) == {
        "checkpoint_id": "c-1",
        "state": {"tries": 3},
        "nodes": {"propose": "flip", "check": "slow"},
        "config": {"depth": 3, "model": "small", "list": ["a=b"]},
        "attempt": 2,
    }


def test_a_fork_can_be_followed(run, server):
    stream = b"event: end\ndata: {}\n\n"
    batch = {"status": "completed", "counts": {"succeeded": 1, "total": 1}}
    comparison = {"metrics": [], "variants": [], "best_variant": None}
    server.answer("GET", "/v1/batches/b-2", batch)
    server.answer("GET", "/v1/batches/b-2/comparison", comparison)
    server.answer("GET", "/v1/batches/b-2/events", stream, kind="text/event-stream")

    done = run("fork", "b-1-0", "--checkpoint", "c-1", "--watch")

    assert (done.exit_code, done.stderr) == (0, "")
    assert "batch b-2 on" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["fork", "b-1-0"],
        ["fork", "b-1-0", "--checkpoint", "c", "--node", "propose"],
        ["fork", "b-1-0", "--checkpoint", "c", "--config", "=1"],
        ["fork", "b-1-0", "--checkpoint", "c", "--state", "{"],
        ["files", "b-1-0", "--get", "a"],
        ["files", "b-1-0", "-o", "a"],
        ["diff"],
    ],
)
def test_wrong_usage_exits_2_and_asks_for_nothing(run, server, arguments):
    assert run(*arguments).exit_code == 2
    assert server.asked == []


def test_a_fork_is_shown_as_one(wtb, server):  # noqa: F811
    origin = {"execution_id": "b-1-0", "attempt": 1, "checkpoint_id": "c\x1b[1m-2"}
    server.answer_batch(forked_from=origin)
    done = wtb("batch", "show", "b-1", "--url", server.url)
    assert "forked from   b-1-0, checkpoint c-2\n" in done.stdout


def test_what_could_not_be_tracked_is_shown(run, server):
    failure = {"checkpoint_id": None, "failed_files": ["a"], "error_message": "no \x1b[2Jspace"}
    answer = {**EXECUTION, "tracking_failures": [failure]}
    server.answer("GET", "/v1/executions/b-1-0", answer)
    assert "files could not be tracked: no space\n" in run("show", "b-1-0").stdout
