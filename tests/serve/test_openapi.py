"""Schemathesis, with all its checks, against the served OpenAPI document."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
CONFIG = Path(__file__).with_name("schemathesis.toml")
SPEC = {
    "project": "failing",
    "variants": [{"name": "only"}],
    "cases": [{"id": "fine", "input": {"do": "fine"}}, {"id": "x", "input": {"do": "raise"}}],
}


def run_schemathesis(url: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(SCHEMATHESIS, "--config-file", CONFIG, "run", f"{url}/openapi.json"),
            *("--url", url, "--checks", "all", "--max-examples", "12", "--no-color"),
            *("--generation-deterministic", "--suppress-health-check", "all", *options),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_nothing_is_found(service, bench, tmp_path):
    bench.run_batch(SPEC)

    done = run_schemathesis(service.url, tmp_path)

    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    assert "Tested: 24" in done.stdout


def test_nothing_is_found_with_a_token(secured_url, token, tmp_path):
    done = run_schemathesis(secured_url, tmp_path, "-H", f"Authorization: Bearer {token}")

    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]


def test_a_token_is_needed_and_its_user_is_recorded(secured_url, token):
    assert httpx.get(f"{secured_url}/v1/batches").status_code == 401
    headers = {"Authorization": f"Bearer {token}"}
    receipt = httpx.post(f"{secured_url}/v1/batches", json=SPEC, headers=headers).json()
    batch = httpx.get(f"{secured_url}/v1/batches/{receipt['batch_id']}", headers=headers).json()
    assert batch["submitted_by"] == "alice"


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/openapi.json"])
def test_what_holds_no_data_needs_no_token(secured_url, path):
    assert httpx.get(secured_url + path).status_code == 200
