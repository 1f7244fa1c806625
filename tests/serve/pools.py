"""Applications of their own for tests of the executor pool."""

from typing import Any, NamedTuple

import ray
from conftest import PROJECTS, wait_until
from ray import serve

from deployments.app import AppArgs, build_app
from wtb_core.testbench import TestBench


class Pool(NamedTuple):
    """An application with its handle."""

    name: str
    handle: Any

    def bench(self) -> TestBench:
        return TestBench.from_handle(self.handle)

    def ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self.handle, method).remote(*arguments).result(timeout_s=30)

    def events(self, *kinds: str) -> list[dict]:
        """The pool's events of these kinds; of all when none is named."""
        items = self.ask("read_pool_events", 0, 1_000, 0)["items"]
        return [e for e in items if not kinds or e["type"].removeprefix("ray_") in kinds]

    def running(self) -> list[str]:
        """The replicas that Serve runs, the oldest first."""
        return [r["replica_id"] for r in self.ask("get_pool")["listed"] if r["state"] == "RUNNING"]

    def find_actors(self, deployment: str) -> list[str]:
        prefix = f"SERVE_REPLICA::{self.name}#{deployment}#"
        names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        return [name for name in names if name.startswith(prefix)]

    def kill(self, actor: str) -> None:
        ray.kill(ray.get_actor(actor, namespace="serve"), no_restart=True)


def deploy(name: str, data_dir: Any, **executor: Any) -> Pool:
    args = AppArgs.model_validate(
        {
            "root": str(PROJECTS),
            "data_dir": str(data_dir),
            "projects": ["trivial/project.yaml", "patient/project.yaml"],
            "executor": {"num_cpus": 0.1, **executor},
        }
    )
    pool = Pool(name, serve.run(build_app(args), name=name, route_prefix=None))
    wait_until(lambda: pool.ask("check_ready")["ready"] and pool.running())
    return pool


def patient(executions: int, steps: int, step_s: float) -> dict:
    """Executions that wait so many steps of so long, with a checkpoint after each."""
    given = {"steps": steps, "step_s": step_s}
    return {
        "project": "patient",
        "variants": [{"name": "only"}],
        "cases": [{"id": str(number), "input": given} for number in range(executions)],
        "workspace": {"keep": "never"},
    }


def trivial(executions: int) -> dict:
    return {
        "project": "trivial",
        "variants": [{"name": "only"}],
        "cases": [{"id": str(n), "input": {"value": n}} for n in range(executions)],
        "evaluators": [],
        "workspace": {"keep": "never"},
    }
