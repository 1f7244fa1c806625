"""One Ray and one application for all tests of real deployments."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import ray
from ray import serve

from deployments.app import AppArgs, build_app
from wtb_core.testbench import TestBench

TOKEN = "a-token-for-the-tests"
PROJECTS = Path(__file__).parent.parent / "projects"


class Service(NamedTuple):
    url: str
    handle: object
    data_dir: Path
    address: str
    projects: Path


def find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "this did not come true in time"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    os.environ["WTB_TOKEN_ALICE"] = TOKEN  # Ray's workers inherit it
    context = ray.init(
        address="local", include_dashboard=False, num_cpus=8, log_to_driver=False, namespace="tests"
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def service(ray_cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    port = find_free_port()
    data_dir = tmp_path_factory.mktemp("data")
    projects = tmp_path_factory.mktemp("projects")
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    args = AppArgs.model_validate(
        {
            "root": str(PROJECTS),
            "data_dir": str(data_dir),
            "projects": [
                "*/project.yaml",
                "../../examples/*/project.yaml",
                f"{projects}/*/project.yaml",
            ],
            "max_pending_executions": 30_000,
            "executor": {
                "min_replicas": 1,
                "max_replicas": 2,
                "slots": 4,
                "max_queued": 16,
                "num_cpus": 0.1,
            },
        }
    )
    handle = serve.run(build_app(args), name="wtb", route_prefix="/")
    url = f"http://127.0.0.1:{port}"
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
    yield Service(url, handle, data_dir, ray_cluster, projects)
    serve.delete("wtb")


@pytest.fixture(scope="session")
def token() -> str:
    return TOKEN


@pytest.fixture(scope="session")
def secured_url(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second application, behind the prefix `/secured`, that wants a token."""
    args = AppArgs.model_validate(
        {
            "root": str(PROJECTS),
            "data_dir": str(tmp_path_factory.mktemp("secured")),
            "projects": ["failing/project.yaml"],
            "max_pending_executions": 1_000,
            "tokens": {"alice": "env:WTB_TOKEN_ALICE"},
            "executor": {"max_replicas": 1, "num_cpus": 0.1},
        }
    )
    serve.run(build_app(args), name="secured", route_prefix="/secured")
    url = f"{service.url}/secured"
    wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
    yield url
    serve.delete("secured")


@pytest.fixture
def bench(service: Service) -> Iterator[TestBench]:
    with TestBench.connect(service.url) as bench:
        yield bench
