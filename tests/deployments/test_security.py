"""Who may ask, and what every answer carries."""

import asyncio

import pytest
from asgi import FakeIngress, connect

from wtb_core.errors import InvalidRequest
from wtb_core.tokens import resolve_tokens

TOKENS = {"alice": "alice-has-a-long-token", "bob": "bob-has-a-longer-token"}
BATCHES = {"items": [], "next_cursor": None}


def get(path="/v1/batches", *, send=None, **options):
    async def run():
        ingress = FakeIngress(list_batches=BATCHES, get_pool=KeyError("a fault"))
        async with connect(ingress, **options) as http:
            return await http.get(path, headers=send or {})

    return asyncio.run(run())


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:80", "[::1]:8000"])
def test_this_machine_is_served(host):
    assert get(send={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("options", "send"),
    [
        ({"client": ("10.0.0.7", 4)}, {}),
        ({"client": ("::ffff:10.0.0.7", 4)}, {}),
        ({"client": None}, {}),
        ({"host": "10.0.0.1"}, {"host": "127.0.0.1"}),
        ({}, {"host": "evil.example"}),
        ({}, {"host": "127.0.0.1.evil.example"}),
        ({}, {"host": "evil.example@127.0.0.1"}),
        ({}, {"host": ""}),
        ({}, {"origin": "http://evil.example"}),
        ({}, {"origin": "null"}),
        ({}, {"origin": "http://[::1"}),
    ],
)
def test_without_tokens_another_machine_or_site_is_refused(options, send):
    answer = get(send=send, **options)

    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"
    assert "without `tokens`" in answer.json()["detail"]


def test_an_origin_on_this_machine_may_ask():
    assert get(send={"origin": "http://localhost:3000"}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_probes_are_answered_to_everyone(path):
    ready = {"ready": True, "problems": [], "project_problems": ["secret"]}

    async def run(tokens):
        async with connect(
            FakeIngress(check_ready=ready), client=("10.0.0.7", 4), tokens=tokens
        ) as http:
            return await http.get(path, headers={"host": "probe.example"})

    for tokens in ({}, TOKENS):
        answer = asyncio.run(run(tokens))
        assert answer.status_code == 200
        assert "secret" not in answer.text


def test_a_probe_below_a_route_prefix_is_one_too():
    ready = {"ready": True, "problems": [], "project_problems": []}

    async def run():
        async with connect(
            FakeIngress(check_ready=ready), tokens=TOKENS, root_path="/prefix"
        ) as http:
            return [await http.get(f"/prefix{path}") for path in ("/readyz", "/v1/batches")]

    assert [answer.status_code for answer in asyncio.run(run())] == [200, 401]


@pytest.mark.parametrize(
    "send",
    [
        {},
        {"authorization": "Bearer nobody-has-this-token"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {TOKENS['alice']}"},
        {"authorization": TOKENS["alice"]},
        {"authorization": b"Bearer \xff\xfe"},
    ],
)
def test_with_tokens_a_request_without_one_is_refused(send):
    answer = get(send=send, tokens=TOKENS)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert not any(token in answer.text for token in TOKENS.values())


def test_a_token_is_good_from_anywhere_and_its_user_is_recorded():
    ingress = FakeIngress(submit_batch={"links": {"self": "/v1/batches/b"}, "created": True})

    async def run():
        async with connect(ingress, tokens=TOKENS, client=("10.0.0.7", 4), host="wtb.example") as h:
            return await h.post(
                "/v1/batches", json={}, headers={"authorization": f"bearer {TOKENS['bob']}"}
            )

    assert asyncio.run(run()).status_code == 202
    assert ingress.calls[0][2]["submitted_by"] == "bob"


def test_who_is_on_this_machine_is_told_what_is_wrong_with_projects():
    ready = {"ready": True, "problems": [], "project_problems": ["secret"]}

    async def run():
        async with connect(FakeIngress(check_ready=ready)) as http:
            return (await http.get("/readyz")).text

    assert "secret" in asyncio.run(run())


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/nosuch", "/v1/pool", "/healthz", "/docs"])
def test_every_answer_has_the_headers_that_browsers_heed(path):
    headers = get(path).headers

    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]


def test_the_api_page_loads_nothing_from_elsewhere():
    page = get("/docs", tokens=TOKENS)

    assert page.status_code == 200
    assert "https://" not in page.text
    for path in (
        "/docs/static/swagger-ui-bundle.js",
        "/docs/static/swagger-ui.css",
    ):
        assert path in page.text
        assert get(path, tokens=TOKENS).status_code == 200


def test_tokens_come_from_the_environment_only(monkeypatch):
    monkeypatch.setenv("WTB_TOKEN_ALICE", "a" * 16)
    assert resolve_tokens({"alice": "env:WTB_TOKEN_ALICE"}) == {"alice": "a" * 16}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("a-token-in-the-config", "tokens.alice: name an environment variable"),
        ("env:", "tokens.alice: name an environment variable"),
        ("env:WTB_NOT_SET", "WTB_NOT_SET is not set"),
        ("env:WTB_SHORT", "WTB_SHORT has 3 characters"),
        ("env:WTB_ODD", "WTB_ODD holds spaces"),
    ],
)
def test_a_token_that_cannot_be_used_says_why_and_is_not_shown(monkeypatch, reference, message):
    monkeypatch.setenv("WTB_SHORT", "abc")
    monkeypatch.setenv("WTB_ODD", "sixteen ünd more characters")
    with pytest.raises(InvalidRequest, match=message) as caught:
        resolve_tokens({"alice": reference})
    assert "a-token-in-the-config" not in str(caught.value)


def test_two_users_cannot_share_a_token(monkeypatch):
    monkeypatch.setenv("WTB_TOKEN", "a" * 16)
    with pytest.raises(InvalidRequest, match="same token"):
        resolve_tokens({"alice": "env:WTB_TOKEN", "bob": "env:WTB_TOKEN"})


@pytest.mark.parametrize("name", ["host", "origin", "authorization"])
def test_a_header_that_decides_comes_once(name):
    async def run():
        async with connect(FakeIngress(list_batches=BATCHES), tokens=TOKENS) as http:
            value = {"authorization": f"Bearer {TOKENS['bob']}"}.get(name, "127.0.0.1")
            return await http.get("/v1/batches", headers=[(name, value), (name, "evil.example")])

    answer = asyncio.run(run())
    assert answer.status_code == 403
    assert f"two {name} headers" in answer.json()["detail"]


def test_nobody_is_sent_to_another_host():
    assert get("/docs/", send={"host": "evil.example"}, tokens=TOKENS).status_code == 404
