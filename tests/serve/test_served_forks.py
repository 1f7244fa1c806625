"""What a served execution left is read, and gone on from, over HTTP, a handle and the commands."""

import json
import os

import httpx
import pytest
from click.testing import CliRunner

from wtb_core.cli import main
from wtb_core.testbench import TestBench

ODD = b"notes/\xff \xc3\xa9%?#.bin"
SHOWN = "notes/\\xff é%?#.bin"
CONTENT = b"\x00\xffcontent"
STEPS = [
    f"import os; open({ODD!r}, 'wb').write({CONTENT!r})",
    "open('file.txt', 'w').write('changed')",
    "import os; os.remove('notes/inner.txt')",
]
SPEC = {
    "project": "steps",
    "variants": [{"name": "only"}],
    "cases": [{"id": "case", "input": {"steps": STEPS, "values": []}}],
}
LATER = ["import os; value = sorted(os.listdir()); open('late.txt', 'x').write('late')"]

http = httpx.Client(timeout=60)


@pytest.fixture(scope="module")
def execution_id(service) -> str:
    with TestBench.connect(service.url) as bench:
        (execution,) = bench.run_batch(SPEC).executions
    assert execution["status"] == "succeeded", execution["failure"]
    return execution["execution_id"]


@pytest.fixture
def roots(bench: TestBench, execution_id) -> list[dict]:
    """The root checkpoints that supersteps ended with."""
    return [item for item in bench.checkpoints(execution_id) if item["source"] == "loop"]


def test_a_file_of_odd_bytes_goes_through_the_proxy(service, bench, execution_id) -> None:
    base = f"{service.url}/v1/executions/{execution_id}"
    items = http.get(f"{base}/files").json()["items"]
    assert {item["path"]: item["change"] for item in items} == {
        "file.txt": "modified",
        "notes/inner.txt": "deleted",
        SHOWN: "created",
    }
    answer = http.get(f"{base}/files/notes/%FF%20%C3%A9%25%3F%23.bin")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["content-disposition"].startswith("attachment")
    assert bench.read_file(execution_id, os.fsdecode(ODD)) == CONTENT
    assert http.get(f"{base}/files/notes/%FE.bin").status_code == 404
    assert http.get(f"{base}/files/notes/inner.txt").status_code == 404
    before = http.get(f"{base}/files/notes/inner.txt", params={"at": "start"})
    assert before.content == b"of the base"


def test_a_fork_over_http_begins_with_its_checkpoint(service, bench, execution_id, roots) -> None:
    before = [bench.execution(execution_id), roots, bench.files(execution_id, "base", diff=True)]
    chosen = roots[2]  # after the second step
    asked = {"checkpoint_id": chosen["checkpoint_id"], "state": {"steps": [*STEPS[:2], *LATER]}}
    answer = http.post(f"{service.url}/v1/executions/{execution_id}/fork", json=asked)
    assert answer.status_code == 202, answer.text
    check_fork(bench, answer.json()["batch_id"], execution_id, chosen)
    again = [bench.execution(execution_id), bench.checkpoints(execution_id)]
    assert again[0] == before[0]
    assert [item for item in again[1] if item["source"] == "loop"] == roots
    assert bench.files(execution_id, "base", diff=True) == before[2]


def test_a_fork_over_a_handle_begins_with_its_checkpoint(service, execution_id, roots) -> None:
    with TestBench.from_handle(service.handle) as bench:
        chosen = roots[2]
        state = {"steps": [*STEPS[:2], *LATER]}
        batch_id = bench.fork(execution_id, chosen["checkpoint_id"], state)
        check_fork(bench, batch_id, execution_id, chosen)


def check_fork(bench: TestBench, batch_id: str, parent: str, chosen: dict) -> None:
    events = list(bench.events(batch_id))
    assert events[-1]["type"] == "ray_batch_test_completed"
    assert bench.batch(batch_id)["forked_from"] == {
        "execution_id": parent,
        "attempt": 1,
        "checkpoint_id": chosen["checkpoint_id"],
    }
    (execution,) = bench.read(batch_id).executions
    assert execution["output"]["values"] == [None, None, ["file.txt", "notes"]]
    forked = bench.execution(execution["execution_id"])
    assert forked["start_commit_id"] == chosen["file_commit_id"]
    items = bench.checkpoints(execution["execution_id"])
    (same,) = [item for item in items if item["checkpoint_id"] == chosen["checkpoint_id"]]
    assert same == chosen
    changed = items[items.index(same) + 1]
    assert changed["source"] == "update"
    assert changed["file_commit_id"] == chosen["file_commit_id"]
    assert changed["state"]["values"] == chosen["state"]["values"]
    found = bench.files(execution["execution_id"])["items"]
    assert [(item["path"], item["change"]) for item in found] == [("late.txt", "created")]
    at = chosen["checkpoint_id"]
    for path in ("file.txt", os.fsdecode(ODD), "notes/inner.txt"):
        before = bench.read_file(parent, path, at)
        assert bench.read_file(execution["execution_id"], path, "start") == before


def test_what_cannot_be_forked_is_a_problem(service, execution_id) -> None:
    url = f"{service.url}/v1/executions/{execution_id}/fork"
    assert http.post(url, json={"checkpoint_id": "nosuch"}).status_code == 404
    assert http.post(url, json={}).status_code == 422


@pytest.fixture
def wtb(service):
    """Runs a command of `wtb execution` on the service; what it printed."""

    def run(*arguments: str) -> bytes:
        ended = CliRunner().invoke(main, ["execution", *arguments, "--url", service.url])
        assert ended.exit_code == 0, ended.output
        return ended.stdout_bytes

    return run


def test_the_commands_list_show_and_get_what_was_changed(wtb, execution_id, roots) -> None:
    changes = json.loads(wtb("files", execution_id, "--json"))
    assert [item["path"] for item in changes["items"]] == ["file.txt", "notes/inner.txt", SHOWN]
    middle = roots[1]["checkpoint_id"]
    first = json.loads(wtb("files", execution_id, "--to", middle, "--json"))
    assert [item["path"] for item in first["items"]] == [SHOWN]
    diff = wtb("diff", execution_id, "file.txt").decode()
    assert "-of the base" in diff
    assert "+changed" in diff
    assert SHOWN not in diff
    assert wtb("files", execution_id, "--get", os.fsdecode(ODD), "-o", "-") == CONTENT


def test_the_command_forks_and_follows(wtb, bench, execution_id, roots) -> None:
    state = json.dumps({"steps": [*STEPS[:2], *LATER]})
    number = str(roots[2]["step"] + 1)  # the input is the first
    lines = wtb("fork", execution_id, "--checkpoint", number, "--state", state, "--watch", "--json")
    batch_id = json.loads(lines.splitlines()[0])["batch_id"]
    check_fork(bench, batch_id, execution_id, roots[2])
