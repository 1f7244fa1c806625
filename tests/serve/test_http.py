"""The HTTP contract of a real application."""

import asyncio

import httpx
import pytest

from deployments import schemas
from wtb_core.sandbox.ladder import Sandbox

http = httpx.Client(timeout=60)

SPEC = {
    "project": "failing",
    "variants": [{"name": "only"}],
    "cases": [{"id": "fine", "input": {"do": "fine"}}],
}


def count_batches(url: str) -> int:
    return len(http.get(f"{url}/v1/batches", params={"limit": 1000}).json()["items"])


def test_a_bad_spec_gets_one_answer_with_all_problems_and_stores_nothing(service) -> None:
    before = count_batches(service.url)
    spec = {
        "project": "failing",
        "variants": [{"name": "a", "nodes": {"nosuch": "x"}}, {"name": "a b"}],
        "cases": [{"id": 1}],
        "limits": {"timeout": -1},
        "evaluators": ["nosuch"],
        "surprise": 1,
    }
    answer = http.post(f"{service.url}/v1/batches", json=spec)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    paths = {problem["path"] for problem in answer.json()["problems"]}
    assert paths >= {
        "variants[0].nodes.nosuch",
        "variants[1].name",
        "cases[0].input",
        "limits.timeout",
        "evaluators[0]",
        "surprise",
    }
    assert count_batches(service.url) == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/batches/nosuch",
        "/v1/batches/nosuch/events",
        "/v1/batches/nosuch/executions",
        "/v1/batches/nosuch/comparison",
        "/v1/executions/nosuch",
        "/v1/executions/b-1-1",
        "/v1/nosuch",
    ],
)
def test_what_does_not_exist_is_a_404_problem(service, path: str) -> None:
    answer = http.get(service.url + path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == 404
    assert "Traceback" not in answer.text
    assert "ray::" not in answer.text


def test_an_unknown_batchs_stream_is_a_404_and_no_stream(service) -> None:
    answer = http.get(
        f"{service.url}/v1/batches/nosuch/events", headers={"accept": "text/event-stream"}
    )
    assert answer.status_code == 404


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"a": NaN}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"[" * 200_000, "application/json", 400),
        (b"[]", "application/json", 422),
        (b"{}", "text/plain", 415),
    ],
)
def test_a_body_that_is_no_spec_is_refused(service, content: bytes, kind: str, status: int) -> None:
    answer = http.post(f"{service.url}/v1/batches", content=content, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 1001}, {"after": -1}, {"wait_ms": 6000}, {"limit": "x"}]
)
def test_a_wrong_parameter_is_a_422_problem(service, params) -> None:
    batch_id = http.post(f"{service.url}/v1/batches", json=SPEC).json()["batch_id"]
    answer = http.get(f"{service.url}/v1/batches/{batch_id}/events", params=params)
    assert answer.status_code == 422
    assert answer.json()["problems"]


def test_one_idempotency_key_makes_one_batch(service) -> None:
    headers = {"idempotency-key": "the same"}
    first = http.post(f"{service.url}/v1/batches", json=SPEC, headers=headers).json()
    again = http.post(f"{service.url}/v1/batches", json=SPEC, headers=headers).json()
    assert again["batch_id"] == first["batch_id"]
    other = SPEC | {"repetitions": 2}
    answer = http.post(f"{service.url}/v1/batches", json=other, headers=headers)
    assert answer.status_code == 409


def test_a_batch_beyond_the_admission_limit_is_refused_with_its_numbers(service) -> None:
    answer = http.post(f"{service.url}/v1/batches", json=SPEC | {"repetitions": 30_001})
    assert answer.status_code == 422
    assert "30001 executions" in answer.json()["detail"]


def test_executions_are_paged_and_filtered(service, bench) -> None:
    spec = SPEC | {
        "repetitions": 3,
        "cases": [{"id": "fine", "input": {"do": "fine"}}, {"id": "x", "input": {"do": "raise"}}],
    }
    batch_id = bench.run_batch(spec).batch_id
    url = f"{service.url}/v1/batches/{batch_id}/executions"
    items, cursor = [], None
    while True:
        params = {"limit": 4} | ({"cursor": cursor} if cursor else {})
        page = http.get(url, params=params).json()
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len({item["execution_id"] for item in items}) == 6
    failed = http.get(url, params={"status": "failed"}).json()["items"]
    assert {item["case_id"] for item in failed} == {"x"}
    assert "output" not in items[0]
    with_output = http.get(url, params={"include": "output", "case_id": "fine"}).json()["items"]
    assert with_output[0]["output"]["result"] == "fine"


def test_a_running_batch_is_cancelled_and_a_second_cancel_changes_nothing(service, bench) -> None:
    spec = SPEC | {"cases": [{"id": "slow", "input": {"do": "slow"}}], "repetitions": 40}
    batch_id = bench.submit(spec)
    events = bench.events(batch_id)
    for event in events:
        if event["type"] == "ray_variant_execution_started":
            break
    url = f"{service.url}/v1/batches/{batch_id}/cancel"
    answer = http.post(url, json={"reason": "changed my mind"})
    assert (answer.status_code, answer.json()["changed"]) == (202, True)
    last = list(events)[-1]
    assert last["type"] == "ray_batch_test_cancelled"
    assert last["payload"]["reason"] == "changed my mind"
    assert last["payload"]["cancelled_by"] == "user"
    assert last["payload"]["counts"]["cancelled"] == 40
    again = http.post(url)
    assert (again.status_code, again.json()["changed"]) == (200, False)


def test_a_retry_runs_only_what_did_not_succeed(service, bench) -> None:
    spec = SPEC | {
        "cases": [{"id": "fine", "input": {"do": "fine"}}, {"id": "x", "input": {"do": "raise"}}]
    }
    first = bench.run_batch(spec)
    answer = http.post(f"{service.url}/v1/batches/{first.batch_id}/retry")
    assert answer.status_code == 202, answer.text
    receipt = answer.json()
    assert (receipt["executions"], receipt["reused"]) == (2, 1)
    events = list(bench.events(receipt["batch_id"]))
    assert events[0]["payload"]["retry_of"] == first.batch_id
    again = bench.read(receipt["batch_id"])
    assert again.batch["counts"] == first.batch["counts"]
    fine, x = again.executions
    assert fine["reused_from"] == first.executions[0]["execution_id"]
    assert fine["output"] == first.executions[0]["output"]
    assert (x["reused_from"], x["attempt"]) == (None, 1)
    base = f"{service.url}/v1/executions/{fine['execution_id']}"
    assert http.get(f"{base}/attempts").json() == {"items": [], "next_cursor": None}
    assert http.get(f"{base}/nodes").json()["items"]


def test_a_batch_that_cannot_be_retried_says_why(service, bench) -> None:
    done = bench.run_batch(SPEC)
    answer = http.post(f"{service.url}/v1/batches/{done.batch_id}/retry")
    assert answer.status_code == 409
    assert "all of its 1 executions succeeded" in answer.json()["detail"]


def test_one_execution_is_cancelled_and_the_others_go_on(service, bench) -> None:
    spec = SPEC | {
        "cases": [{"id": "slow", "input": {"do": "slow"}}, {"id": "fine", "input": {"do": "fine"}}]
    }
    batch_id = bench.submit(spec)
    events = bench.events(batch_id)
    slow = next(
        event["payload"]["execution_id"]
        for event in events
        if event["type"] == "ray_variant_execution_started"
        and event["payload"]["case_id"] == "slow"
    )
    url = f"{service.url}/v1/executions/{slow}/cancel"
    answer = http.post(url, json={"reason": "too slow"})
    assert (answer.status_code, answer.json()["changed"]) == (202, True)
    ended = {e["payload"]["execution_id"]: e for e in events if "execution_c" in e["type"]}
    assert ended[slow]["payload"]["reason"] == "too slow"
    batch = bench.batch(batch_id)
    assert (batch["status"], batch["counts"]["succeeded"]) == ("completed", 1)
    assert http.post(url).json() == {
        "execution_id": slow,
        "status": "cancelled",
        "changed": False,
    }


def test_the_parts_of_an_execution_are_served(service, bench) -> None:
    done = bench.run_batch(SPEC)
    base = f"{service.url}/v1/executions/{done.executions[0]['execution_id']}"
    assert http.get(f"{base}/output").json() == done.executions[0]["output"]
    attempts = http.get(f"{base}/attempts").json()["items"]
    assert [attempt["status"] for attempt in attempts] == ["succeeded"]
    nodes = http.get(f"{base}/nodes", params={"attempt": 1}).json()
    assert nodes["attempt"] == 1
    assert [node["superstep"] for node in nodes["items"]] == [1]
    log = http.get(f"{base}/logs/stdout")
    assert log.headers["content-disposition"].startswith("attachment")
    assert http.get(f"{base}/logs/stderr", params={"attempt": 2}).status_code == 404


def test_a_dry_run_shows_the_plan_and_stores_nothing(service) -> None:
    before = count_batches(service.url)
    answer = http.post(f"{service.url}/v1/batches", params={"dry_run": True}, json=SPEC)
    plan = answer.json()
    assert (answer.status_code, plan["dry_run"], plan["executions"]) == (200, True, 1)
    assert [variant["name"] for variant in plan["variants"]] == ["only"]
    assert (
        http.post(
            f"{service.url}/v1/batches", params={"dry_run": True}, json=SPEC | {"cases": []}
        ).status_code
        == 422
    )
    assert count_batches(service.url) == before


def test_one_project_is_asked_for_by_name(service) -> None:
    assert http.get(f"{service.url}/v1/projects/failing").json()["graphs"]["default"]["nodes"]
    assert http.get(f"{service.url}/v1/projects/nosuch").status_code == 404


def test_projects_pool_and_health_answer(service, tmp_path) -> None:
    projects = http.get(f"{service.url}/v1/projects").json()["items"]
    assert {"failing", "code_repair"} <= {project["name"] for project in projects}
    pool = http.get(f"{service.url}/v1/pool").json()
    schemas.Pool.model_validate(pool)
    grade = asyncio.run(Sandbox(tmp_path).find_grade())
    assert pool["replicas"][0]["isolation"] == grade.describe()
    assert pool["limits"]["max_queued"] == 16
    assert http.get(f"{service.url}/healthz").json() == {"status": "ok"}


def test_comparison_comes_as_json_csv_and_markdown(service, bench) -> None:
    batch_id = bench.run_batch(SPEC).batch_id
    url = f"{service.url}/v1/batches/{batch_id}/comparison"
    assert http.get(url).json()["variants"][0]["scores"]["grade"] == {"mean": 2.0, "n": 1}
    rows = http.get(url, params={"format": "csv"}).text.splitlines()
    assert rows[0].startswith("variant,n,succeeded")
    assert rows[1].startswith("only,1,1,0,0")
    assert "| only | 1 | 1 | 0 |" in http.get(url, params={"format": "md"}).text
    assert http.get(url, params={"format": "xml"}).status_code == 422
