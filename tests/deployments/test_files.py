"""Checkpoints, files and forks over HTTP, with the real ingress over a store without Serve."""

import asyncio
import json
from urllib.parse import quote

import httpx
import pytest
from asgi import MAX_BODY_BYTES, connect

from deployments import routes, schemas
from deployments.batch_ingress import BatchIngress, Settings
from tests.contract.store_bench import Store, make_template
from tests.deployments.fakes import FakeHandle
from tests.left_behind import AFTER, BEFORE, ODD, LeftBehind, Projects
from wtb_core import forks
from wtb_core.clients import HandleClient, HttpClient
from wtb_core.data import DataDir
from wtb_core.errors import NotAFile, NotForkable, NotFound
from wtb_core.store import views
from wtb_core.testbench import AsyncTestBench


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("template") / "wtb.db")


@pytest.fixture
def store(template, tmp_path):
    store = Store(template, tmp_path / "wtb.db", admission=3)
    yield store
    store.close()


@pytest.fixture
def left(tmp_path):
    return LeftBehind(tmp_path)


@pytest.fixture
def ingress(store, left):
    """The ingress without what it starts: its projects and its collector are stand-ins."""

    async def get_trace(text, attempt):
        return store.read(lambda c: views.read_trace(c, text, attempt))

    async def get_fork_source(text, attempt):
        return store.read(lambda c: views.read_fork_source(c, text, attempt))

    async def accept(batch):
        return store.accept(batch)

    async def get_batch(batch_id):
        return store.view(batch_id)

    ingress = BatchIngress.__new__(BatchIngress)
    ingress._collector = FakeHandle(
        get_trace=get_trace, get_fork_source=get_fork_source, accept=accept, get_batch=get_batch
    )
    ingress._files = left.files
    ingress._registry = Projects(left.version)
    return ingress


@pytest.fixture
def execution(store, left):
    batch = store.make()._replace(project_version=left.version)
    store.accept(batch)
    store.finish(store.claim(), left.outcome())
    return f"{batch.batch_id}-0"


@pytest.fixture
def send(ingress, execution):
    def send(method, path, **options):
        async def run():
            async with connect(ingress) as http:
                return await http.request(method, f"/v1/executions/{execution}{path}", **options)

        return asyncio.run(run())

    return send


def test_checkpoints_are_answered_as_documented(send, execution):
    answer = send("GET", "/checkpoints?limit=2&attempt=1")

    assert answer.status_code == 200
    page = schemas.CheckpointPage.model_validate(answer.json())
    assert (page.execution_id, page.attempt, page.next_cursor) == (execution, 1, "2")
    assert [item.checkpoint_id for item in page.items] == ["c-0", "c-1"]


def test_an_execution_that_runs_has_no_checkpoints_yet(store, left, ingress, send):
    batch = store.make()._replace(project_version=left.version)
    store.accept(batch)

    async def read():
        return await ingress.list_checkpoints(f"{batch.batch_id}-0")

    for attempt in (0, 1):
        page = asyncio.run(read())
        assert (page["attempt"], page["items"]) == (attempt, [])
        store.claim()


def test_changes_are_answered_as_documented(send):
    answer = send("GET", "/files?from=base&to=c-3&diff=true")

    assert answer.status_code == 200
    page = answer.json()
    schemas.FilePage.model_validate(page)
    assert (page["from"], page["to"]) == ("base", "c-3")
    assert page["counts"] == {"created": 3, "modified": 2, "deleted": 1}
    assert any("return a if b == 0" in (item["diff"] or "") for item in page["items"])
    assert "out/\\xff \x1b[2J.bin" in [item["path"] for item in page["items"]]


def test_without_parameters_they_are_those_of_user_code(send):
    page = send("GET", "/files").json()
    assert (page["from"], page["to"], len(page["items"])) == ("start", "final", 5)
    assert all(item["diff"] is None for item in page["items"])


@pytest.mark.parametrize(
    ("path", "status", "where"),
    [
        ("/files?from=", 422, "from"),
        ("/files?to=" + "x" * 129, 422, "to"),
        ("/files?diff=perhaps", 422, "diff"),
        ("/files?from_=start", 422, "from_"),
        ("/files?limit=0", 422, "limit"),
        ("/files?attempt=0", 422, "attempt"),
        ("/files/src/gcd.py?at=", 422, "at"),
        ("/files/src/gcd.py?from=start", 422, "from"),
        ("/checkpoints?cursor=x", 422, "cursor"),
        ("/files?from=nosuch", 404, None),
        ("/files?attempt=9", 404, None),
        ("/checkpoints?attempt=9", 404, None),
    ],
)
def test_a_wrong_parameter_is_named(send, path, status, where):
    answer = send("GET", path)

    assert answer.status_code == status, answer.text
    if where is not None:
        assert [item["path"] for item in answer.json()["problems"]] == [where]


def test_a_file_is_an_attachment_that_no_browser_shows(send):
    answer = send("GET", "/files/src/gcd.py")

    assert (answer.status_code, answer.content) == (200, AFTER)
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="gcd.py"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-length"] == str(len(AFTER))
    assert answer.headers["x-file-mode"] == "0600"


@pytest.mark.parametrize("at", ["start", "base", "c-1"])
def test_a_file_is_that_of_the_point(send, at):
    assert send("GET", f"/files/src/gcd.py?at={at}").content == BEFORE


def test_a_range_is_not_honoured(send):
    for span in ("bytes=0-3", "bytes=9999-", "nonsense"):
        answer = send("GET", "/files/src/gcd.py", headers={"Range": span})
        assert (answer.status_code, answer.content) == (200, AFTER)
        assert answer.headers["accept-ranges"] == "none"


@pytest.mark.parametrize(
    "encoded", ["out/%FF%20%1B%5B2J.bin", "out%2F%FF%20%1B%5B2J.bin", "%6fut/%ff%20%1b%5b2J.bin"]
)
def test_a_path_may_have_any_bytes(send, encoded):
    answer = send("GET", f"/files/{encoded}")

    assert (answer.status_code, answer.content) == (200, b"\0\1\2")
    name = answer.headers["content-disposition"]
    assert name == "attachment; filename*=utf-8''%5Cxff%20%1B%5B2J.bin"


@pytest.mark.parametrize(
    "name", ['"quoted".txt', "semi;colon", "line\nend", "é.txt", "100%", "a?b", "a#b", "\\", "%2F"]
)
def test_a_name_of_any_characters_is_found_and_stays_one_header(ingress, store, left, name):
    final = left.commit({name: left.file(b"x")})
    files = left.outcome().files.model_copy(update={"file_commit_id": final})
    batch = store.make()._replace(project_version=left.version)
    store.accept(batch)
    store.finish(store.claim(), left.outcome(files=files))

    async def run():
        async with connect(ingress) as http:
            path = quote(name, safe="")
            return await http.get(f"/v1/executions/{batch.batch_id}-0/files/{path}")

    answer = asyncio.run(run())

    assert (answer.status_code, answer.content) == (200, b"x"), answer.text
    disposition = answer.headers["content-disposition"]
    assert disposition.isprintable()
    assert disposition.count('"') in {0, 2}
    assert disposition.count(";") == 1


@pytest.mark.parametrize(
    "path",
    [
        "",
        "nosuch",
        "%2E%2E/%2E%2E/etc/passwd",
        "%2Fetc%2Fpasswd",
        "src/%2E%2E/src/gcd.py",
        "src//gcd.py",
        "src/gcd.py/",
        "src%00gcd.py",
        "etc/passwd",
        "%",
        "%zz",
        "old.txt",
    ],
)
def test_what_is_not_there_is_a_problem_document(send, path):
    answer = send("GET", f"/files/{path}")

    assert answer.status_code == 404, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"].endswith("#not-found")


def test_nothing_outside_of_the_commit_is_served(send, left):
    digest = left.secret
    for path in (digest, f"{digest[:2]}/{digest}", str(left.blobs.path(digest)), f"../{digest}"):
        assert send("GET", f"/files/{quote(path, safe='')}").status_code == 404


@pytest.mark.parametrize(
    ("path", "says"), [("src", "a directory"), ("etc", "a link to '/root/.ssh'")]
)
def test_a_directory_and_a_link_say_what_they_are(send, path, says):
    answer = send("GET", f"/files/{path}")

    assert answer.status_code == 404
    assert answer.json()["type"].endswith("#not-a-file")
    assert says in answer.json()["detail"]


def fork(send, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return send(
        "POST", "/fork", content=content, headers={"content-type": "application/json", **headers}
    )


def test_a_fork_is_accepted_as_a_batch(send, store, execution):
    answer = fork(send, {"checkpoint_id": "c-2", "nodes": {"propose": "flip"}, "state": None})

    assert answer.status_code == 202, answer.text
    receipt = schemas.ForkReceipt.model_validate(answer.json())
    assert answer.headers["location"] == f"/v1/batches/{receipt.batch_id}"
    assert (receipt.executions, receipt.forked_from.execution_id) == (1, execution)
    schemas.Batch.model_validate(store.view(receipt.batch_id))
    assert store.claim().origin.checkpoint_id == "c-2"


def test_a_key_makes_one_fork(send, store):
    body = {"checkpoint_id": "c-2"}
    first = fork(send, body, **{"idempotency-key": "k"})
    again = fork(send, body, **{"idempotency-key": "k"})
    other = fork(send, {"checkpoint_id": "c-1"}, **{"idempotency-key": "k"})

    assert first.json() == again.json()
    assert (other.status_code, len(store.batch_ids())) == (409, 2)


@pytest.mark.parametrize(
    ("body", "status", "paths"),
    [
        ({"checkpoint_id": "nosuch"}, 404, None),
        ({"checkpoint_id": "c-2", "attempt": 7}, 404, None),
        ({"checkpoint_id": "sub"}, 409, None),
        ({"checkpoint_id": "lost"}, 409, None),
        ({}, 422, ["checkpoint_id"]),
        ([], 422, [""]),
        ({"checkpoint_id": "c-2", "surprise": 1}, 422, ["surprise"]),
        ({"checkpoint_id": 3, "state": "x"}, 422, ["checkpoint_id", "state"]),
        ({"checkpoint_id": "c-2", "attempt": True}, 422, ["attempt"]),
        (
            {"checkpoint_id": "c-2", "nodes": {"nosuch": "x", "propose": "nosuch"}},
            422,
            ["nodes.nosuch", "nodes.propose"],
        ),
        (b"{", 400, None),
        (b" " * (MAX_BODY_BYTES + 1), 413, None),
    ],
)
def test_a_fork_that_cannot_be_is_refused_and_nothing_is_stored(send, store, body, status, paths):
    answer = fork(send, body)

    assert answer.status_code == status, answer.text
    if paths is not None:
        assert [item["path"] for item in answer.json()["problems"]] == paths
    assert len(store.batch_ids()) == 1


def test_a_fork_needs_a_body_and_room(send, store):
    assert send("POST", "/fork").status_code == 415
    store.submit(cases=3)
    answer = fork(send, {"checkpoint_id": "c-2"})
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0


def test_an_unknown_execution_has_nothing(ingress):
    async def run(method, path, **options):
        async with connect(ingress) as http:
            return await http.request(method, f"/v1/executions/b-x-0{path}", **options)

    for path in ("/checkpoints", "/files", "/files/a"):
        assert asyncio.run(run("GET", path)).status_code == 404
    assert asyncio.run(run("POST", "/fork", json={"checkpoint_id": "c"})).status_code == 404


def test_handles_get_bytes_and_our_errors(ingress, execution):
    async def check():
        found = await ingress.read_file(execution, "src/gcd.py", "start")
        assert (found["data"], found["execution_id"]) == (BEFORE, execution)
        with pytest.raises(NotAFile):
            await ingress.read_file(execution, "src")
        with pytest.raises(NotFound):
            await ingress.list_files(execution, "nosuch")
        with pytest.raises(NotForkable):
            await ingress.fork_execution(execution, "sub")
        page = await ingress.list_files(execution, "start", "c-2", None, True)
        assert page["counts"]["modified"] == 1

    asyncio.run(check())


def test_the_body_of_a_fork_is_documented_whole():
    assert schemas.ForkBody.model_fields.keys() == forks.ForkRequest.model_fields.keys()


def connect_over_http(ingress):
    app = routes.build(ingress, Settings(DataDir("/nowhere"), "/", [], 1, MAX_BODY_BYTES, {}), {})
    transport = httpx.ASGITransport(app, client=("127.0.0.1", 50_000))
    return HttpClient("http://127.0.0.1", transport=transport)


def connect_over_a_handle(ingress):
    names = ("fork_execution", "list_checkpoints", "list_files", "read_file")
    return HandleClient(FakeHandle(**{name: getattr(ingress, name) for name in names}))


@pytest.mark.parametrize("connect_client", [connect_over_http, connect_over_a_handle])
def test_a_bench_reads_and_forks_whatever_the_way(
    ingress, store, execution, connect_client, monkeypatch
):
    for module in ("http", "handle"):
        monkeypatch.setattr(f"wtb_core.clients.{module}.PAGE", 2)

    async def run():
        bench = AsyncTestBench(connect_client(ingress), "here")
        checkpoints = await bench.checkpoints(execution)
        assert [item["checkpoint_id"] for item in checkpoints][::5] == ["c-0", "c-3"]
        found = await bench.files(execution, diff=True)
        assert found.keys() == {"execution_id", "attempt", "from", "to", "counts", "items"}
        assert [item["change"] for item in found["items"]].count("created") == 2
        assert (await bench.files(execution, "c-1", "c-2"))["counts"]["modified"] == 1
        assert await bench.read_file(execution, "src/gcd.py", "base") == BEFORE
        assert await bench.read_file(execution, ODD, attempt=1) == b"\0\1\2"
        for path in ("../../batches", "src//gcd.py", "./src/gcd.py", "nosuch", "/etc/passwd"):
            with pytest.raises(NotFound, match="file"):
                await bench.read_file(execution, path)
        with pytest.raises(NotAFile):
            await bench.read_file(execution, "etc")
        with pytest.raises(NotForkable):
            await bench.fork(execution, "sub")
        first = await bench.fork(execution, "c-2", {"a": 1}, {"propose": "flip"}, {"n": 2}, 1, "k")
        assert (
            await bench.fork(execution, "c-2", {"a": 1}, {"propose": "flip"}, {"n": 2}, 1, "k")
            == first
        )
        return first

    batch_id = asyncio.run(run())

    assignment = store.claim()
    assert assignment.batch_id == batch_id
    assert assignment.origin.state == {"a": 1}
    assert (assignment.variant.nodes, assignment.variant.config) == ({"propose": "flip"}, {"n": 2})
