"""Python handles: from another Ray namespace, and what the deployments must not know."""

import json
import subprocess
import sys

import ray

from wtb_core.testbench import TestBench

SPEC = {
    "project": "failing",
    "variants": [{"name": "only"}],
    "cases": [{"id": "fine", "input": {"do": "fine"}}],
    "repetitions": 3,
}

DRIVER = """
import json, sys
import ray
from ray import serve
from wtb_core.errors import InvalidSpec, NotFound
from wtb_core.testbench import TestBench

address, spec = sys.argv[1], json.loads(sys.argv[2])
ray.init(address=address, namespace="another", log_to_driver=False)
handle = serve.get_app_handle("wtb")
submitted = handle.submit_batch.remote(spec).result(timeout_s=60)
stream = handle.options(stream=True).stream_events.remote(submitted["batch_id"], 0)
types = [event["type"] for event in stream]
comparison = handle.get_comparison.remote(submitted["batch_id"]).result(timeout_s=60)
try:
    handle.get_batch.remote("nosuch").result(timeout_s=60)
except NotFound as error:
    missing = str(error)
try:
    handle.submit_batch.remote({"project": "failing"}).result(timeout_s=60)
except InvalidSpec as error:
    problems = [problem.path for problem in error.problems]
bench = TestBench.from_handle(handle)
try:
    bench.batch("nosuch")
except NotFound as error:
    assert str(error) == "there is no batch 'nosuch'", str(error)
print(json.dumps({
    "types": types, "comparison": comparison, "missing": missing, "problems": problems,
    "status": bench.batch(submitted["batch_id"])["status"],
    "outputs": [item["output"]["result"] for item in bench.results(submitted["batch_id"])],
}))
"""


def test_a_driver_in_another_namespace_submits_streams_and_compares(service) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, service.address, json.dumps(SPEC)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["types"][0] == "ray_batch_test_started"
    assert answer["types"][-1] == "ray_batch_test_completed"
    assert answer["comparison"]["variants"][0]["succeeded"] == 3
    assert "nosuch" in answer["missing"]
    assert "cases" in answer["problems"]
    assert answer["status"] == "completed"
    assert answer["outputs"] == ["fine"] * 3


def test_both_benches_work_inside_an_actor_with_an_event_loop(service) -> None:
    """Nothing in them waits with `result()`, which Serve refuses there."""

    @ray.remote(num_cpus=0)
    class Actor:
        async def run(self, handle, spec: dict) -> tuple[list[str], str, bool]:
            from wtb_core.testbench import AsyncTestBench, TestBench

            async with AsyncTestBench.from_handle(handle) as bench:
                batch_id = await bench.submit(spec)
                types = [event["type"] async for event in bench.events(batch_id)]
                result = await bench.read(batch_id)
            with TestBench.from_handle(handle) as plain:
                status = plain.batch(batch_id)["status"]
            return types, status, result.succeeded

    actor = Actor.remote()
    types, status, succeeded = ray.get(actor.run.remote(service.handle, SPEC), timeout=120)

    assert types[-1] == "ray_batch_test_completed"
    assert (status, succeeded) == ("completed", True)


def test_no_deployment_process_has_project_code(service, bench: TestBench) -> None:
    """Projects were described and run by then; their code is in no process of ours."""
    bench.run_batch(SPEC)
    projects = str(service.data_dir)

    def find_foreign(_actor: object) -> list[str]:
        import sys

        return [
            name
            for name, module in list(sys.modules.items())
            if str(getattr(module, "__file__", None) or "").startswith(projects)
            or "tests/projects" in str(getattr(module, "__file__", None) or "")
        ]

    names = [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith("SERVE_REPLICA::wtb#")
    ]
    assert {name.split("#")[1] for name in names} == {
        "BatchIngress",
        "EventCollector",
        "VariantExecutor",
    }
    for name in names:
        actor = ray.get_actor(name, namespace="serve")
        assert ray.get(actor.__ray_call__.remote(find_foreign)) == []


def test_local_and_served_runs_agree(service, bench: TestBench, tmp_path) -> None:
    """The same deterministic spec gives the same scores and the same events per execution."""
    from tests.serve.conftest import PROJECTS

    spec = SPEC | {
        "variants": [{"name": "one"}, {"name": "two"}],
        "cases": [
            {"id": "fine", "input": {"do": "fine"}},
            {"id": "bad", "input": {"do": "raise"}},
            {"id": "exit", "input": {"do": "exit"}},
        ],
        "retry": {"max_attempts": 2, "backoff": 0.05},
    }

    def collect(one: TestBench):
        events: list[dict] = []
        result = one.run_batch(spec, on_event=events.append)
        sequences: dict[tuple, list] = {}
        for event in events:
            payload = event["payload"]
            if event["type"].startswith("ray_variant_"):
                key = (payload["variant"], payload["case_id"], payload["repetition"])
                sequences.setdefault(key, []).append(
                    (event["type"], payload["attempt"], payload.get("will_retry"))
                )
        scores = {
            (e["variant"], e["case_id"], e["repetition"]): (
                e["status"],
                e["failure"] and e["failure"]["reason"],
                e["scores"],
                e["output"],
            )
            for e in result.executions
        }
        means = [
            {k: v for k, v in row.items() if k != "mean_duration_ms"}
            for row in result.comparison["variants"]
        ]
        return {"scores": scores, "means": means, "sequences": sequences}

    served = collect(bench)
    with TestBench.local(tmp_path / "local", root=PROJECTS, projects=["*/project.yaml"]) as local:
        assert collect(local) == served
