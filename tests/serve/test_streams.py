"""The event stream of a served batch: complete, ordered, and the same however it is read."""

import json

import httpx
import pytest

from wtb_core.events import parse_event
from wtb_core.report import BatchFold

http = httpx.Client(timeout=60)

SPEC = {
    "project": "failing",
    "variants": [{"name": "one"}, {"name": "two"}],
    "cases": [{"id": "fine", "input": {"do": "fine"}}, {"id": "bad", "input": {"do": "raise"}}],
    "repetitions": 5,
}


@pytest.fixture(scope="module")
def batch_id(service) -> str:
    answer = http.post(f"{service.url}/v1/batches", json=SPEC)
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/v1/batches/{body['batch_id']}"
    assert body["executions"] == 20
    return body["batch_id"]


def read_sse(url: str, after: int = 0, stop_after: int | None = None, **headers: str):
    """Events of a stream, and whether it said that it ends."""
    items, event_type = [], None
    with httpx.stream(
        "GET",
        url,
        params={"after": after},
        headers={"accept": "text/event-stream", **headers},
        timeout=60,
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("event: "):
                event_type = line.removeprefix("event: ")
            elif line.startswith("data: "):
                if event_type == "end":
                    return items, True
                items.append(json.loads(line.removeprefix("data: ")))
                if len(items) == stop_after:
                    return items, False
    return items, False


def read_pages(url: str, limit: int):
    items, after = [], 0
    while True:
        page = http.get(
            url, params={"after": after, "limit": limit, "wait_ms": 5000}, timeout=30
        ).json()
        items += page["items"]
        after = page["next_after"]
        if page["ended"]:
            return items


def test_every_way_to_read_gives_the_same_events(service, batch_id: str) -> None:
    """Seq is 1..n without a gap over JSON paging, SSE, and an SSE that was cut and resumed."""
    url = f"{service.url}/v1/batches/{batch_id}/events"
    whole, ended = read_sse(url)
    assert ended
    assert [event["seq"] for event in whole] == list(range(1, len(whole) + 1))
    assert read_pages(url, limit=7) == whole
    head, _ = read_sse(url, stop_after=9)
    tail, ended = read_sse(url, **{"last-event-id": str(head[-1]["seq"])})
    assert ended
    assert head + tail == whole


def test_every_event_is_one_of_the_seventeen(service, batch_id: str) -> None:
    for event in read_pages(f"{service.url}/v1/batches/{batch_id}/events", limit=1000):
        assert parse_event(event).seq == event["seq"]
        assert event["batch_id"] == batch_id


def test_the_batch_starts_with_what_is_in_force(service, batch_id: str) -> None:
    events = read_pages(f"{service.url}/v1/batches/{batch_id}/events", limit=1000)
    assert [event["type"] for event in events[:3]] == [
        "ray_batch_test_started",
        "ray_actor_pool_created",
        "ray_actor_initialized",
    ]
    pool = http.get(f"{service.url}/v1/pool/events").json()["items"]
    assert events[1]["event_id"] in {event["event_id"] for event in pool}


def test_each_execution_has_exactly_one_terminal_event(service, batch_id: str) -> None:
    events = read_pages(f"{service.url}/v1/batches/{batch_id}/events", limit=1000)
    ends = [
        event["payload"]["execution_id"]
        for event in events
        if event["type"] in {"ray_variant_execution_completed", "ray_variant_execution_failed"}
    ]
    assert len(ends) == len(set(ends)) == 20


def test_the_fold_of_the_events_is_what_the_batch_says(service, batch_id: str) -> None:
    fold = BatchFold()
    for event in read_pages(f"{service.url}/v1/batches/{batch_id}/events", limit=1000):
        fold.feed(event)
    batch = http.get(f"{service.url}/v1/batches/{batch_id}").json()
    assert fold.status == batch["status"] == "completed"
    assert fold.counts == batch["counts"]
    comparison = http.get(f"{service.url}/v1/batches/{batch_id}/comparison").json()
    assert fold.comparison().items() <= comparison.items()


def test_two_watchers_see_the_same(service) -> None:
    from concurrent.futures import ThreadPoolExecutor

    batch_id = http.post(f"{service.url}/v1/batches", json=SPEC).json()["batch_id"]
    url = f"{service.url}/v1/batches/{batch_id}/events"
    with ThreadPoolExecutor(4) as pool:
        seen = list(pool.map(lambda _: read_sse(url), range(4)))
    assert all(ended for _, ended in seen)
    assert all(items == seen[0][0] for items, _ in seen)
