"""The contract, key by key, written down from the design and held against the code.

What a later issue brings stands in the tables too, with that issue's number: once it is there, its
row must be moved, or the test fails.
"""

import inspect
import re
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from asgi import FakeIngress
from pydantic import BaseModel

from deployments import routes, schemas
from deployments.app import AppArgs, ExecutorArgs
from deployments.batch_ingress import BatchIngress, Settings
from wtb_core import cli, events, specs
from wtb_core.attempts import Failure, NodeRun
from wtb_core.data import DataDir
from wtb_core.projects import Environment, ProjectFile, ScoreRule
from wtb_core.testbench import AsyncTestBench, TestBench

SPEC: dict[str, Any] = {
    "project": "code_repair",
    "name": "nightly",
    "variants": [
        {"name": "baseline"},
        {
            "name": "flip",
            "graph": "default",
            "nodes": {"propose": "flip_operators"},
            "config": {"max_candidates": 50},
            "context": {},
            "files": {"prompts/system.md": "..."},
            "recursion_limit": 50,
        },
    ],
    "matrix": {
        "nodes": {"propose": ["flip_operators", "shift_constants"]},
        "config": {"max_candidates": [10, 50]},
        "exclude": [{"nodes": {"propose": "shift_constants"}, "config": {"max_candidates": 50}}],
        "include": [{"name": "wild", "nodes": {"propose": "random_walk"}}],
    },
    "cases": [
        {
            "id": "HumanEval/12",
            "input": {"module": "gcd.py"},
            "reference": {"tests": 7},
            "tags": ["math"],
            "files": {},
            "resume": [True],
        }
    ],
    "repetitions": 1,
    "evaluators": ["tests_pass"],
    "baseline": "baseline",
    "limits": {
        "timeout": "10m",
        "evaluator_timeout": "2m",
        "batch_timeout": None,
        "memory": "2GiB",
        "processes": 256,
        "output": "10MiB",
        "file_size": "1GiB",
        "max_failures": None,
        "concurrency": None,
    },
    "retry": {"max_attempts": 3, "backoff": "1s", "on": ["crash", "lost"]},
    "workspace": {"network": True, "keep": "failed"},
    "labels": {"team": "search"},
}

SPEC_KEYS: list[tuple[type[BaseModel], set[str]]] = [
    (specs.BatchSpec, {*SPEC, "priority"}),
    (specs.Variant, set(SPEC["variants"][1])),
    (specs.Matrix, {"graph", "nodes", "config", "context", "exclude", "include"}),
    (specs.Limits, set(SPEC["limits"])),
    (specs.Retry, set(SPEC["retry"])),
    (specs.Workspace, set(SPEC["workspace"])),
]

PROJECT: dict[str, Any] = {
    "name": "code_repair",
    "graphs": {"default": "./graph.py:build_graph", "react": "./react.py:graph"},
    "workspace": "./workspace",
    "nodes": {"propose": {"flip_operators": "./graph.py:flip_operators"}},
    "evaluators": {"tests_pass": "./evaluators.py:tests_pass"},
    "scores": {"tests_pass": {"weight": 1, "higher_is_better": True, "failure_score": 0}},
    "variant_files": ["prompts/**"],
    "environment": {
        "pass": ["OPENAI_API_KEY"],
        "set": {"MODE": "test"},
        "file": ".env",
        "python": ".venv/bin/python",
    },
    "start": "fork",
}

ROUTES = """
POST /v1/batches
GET  /v1/batches
GET  /v1/batches/{batch_id}
POST /v1/batches/{batch_id}/cancel
POST /v1/batches/{batch_id}/retry
GET  /v1/batches/{batch_id}/events
GET  /v1/batches/{batch_id}/executions
GET  /v1/batches/{batch_id}/comparison
GET  /v1/executions/{execution_id}
GET  /v1/executions/{execution_id}/output
GET  /v1/executions/{execution_id}/attempts
GET  /v1/executions/{execution_id}/nodes
GET  /v1/executions/{execution_id}/logs/{stream}
GET  /v1/executions/{execution_id}/checkpoints
GET  /v1/executions/{execution_id}/files
GET  /v1/executions/{execution_id}/files/{path}
POST /v1/executions/{execution_id}/cancel
POST /v1/executions/{execution_id}/fork
GET  /v1/projects
GET  /v1/projects/{name}
GET  /v1/pool
GET  /v1/pool/events
GET  /healthz
GET  /readyz
"""

HANDLE_METHODS = """
submit_batch      spec idempotency_key
get_batch         batch_id
list_batches
read_events       batch_id after limit wait_ms
stream_events     batch_id after
list_executions   batch_id
get_execution     execution_id
get_comparison    batch_id
cancel_batch      batch_id reason
cancel_execution  execution_id
retry_batch       batch_id
fork_execution    execution_id checkpoint_id state nodes config attempt idempotency_key
read_file         execution_id path at attempt
list_projects
"""

BENCH_METHODS = """
connect from_handle local open
run_batch submit events results comparison cancel retry fork
"""

COMMANDS = """
wtb batch submit
wtb batch list
wtb batch show
wtb batch watch
wtb batch cancel
wtb batch retry
wtb batch compare
wtb batch export
wtb execution show
wtb execution logs
wtb execution cancel
wtb execution files
wtb execution diff
wtb execution fork
wtb project list
wtb project check
wtb run
wtb serve
wtb demo
wtb doctor
wtb prune
"""

EVENTS = """
ray_batch_test_started ray_batch_test_progress ray_batch_test_completed ray_batch_test_failed
ray_batch_test_cancelled ray_actor_pool_created ray_actor_initialized ray_actor_failed
ray_actor_restarted ray_variant_execution_started ray_variant_execution_completed
ray_variant_execution_failed ray_variant_execution_cancelled ray_variant_files_tracked
ray_variant_files_tracking_failed ray_backpressure_applied ray_backpressure_released
"""

ANSWERS = {
    schemas.Receipt: "batch_id status executions links",
    schemas.BatchPage: "items next_cursor",
    schemas.Batch: """batch_id name project project_version status retry_of created_at started_at
        finished_at counts progress variants spec""",
    events.Counts: "pending running succeeded failed cancelled total",
    schemas.Progress: "elapsed_ms remaining_ms per_s",
    schemas.EventPage: "items next_after ended",
    schemas.Execution: """execution_id batch_id variant case_id repetition status attempt
        reused_from failure output_bytes output scores score_comments score_errors overall_score
        duration_ms queue_ms node_count checkpoint_count file_commit_id isolation cpu_ms
        peak_rss_bytes usage""",
    Failure: "kind reason error_type message node",
    NodeRun: "name superstep start_ms end_ms error",
}

ENVELOPE = "seq event_id type occurred_at batch_id producer payload"
ATTEMPT = "execution_id attempt variant case_id repetition actor_id replica_id"
PAYLOADS = {
    events.BatchStarted: """project project_version variants cases repetitions executions reused
        retry_of limits""",
    events.BatchProgress: """total pending running succeeded failed cancelled elapsed_ms
        remaining_ms per_s""",
    events.BatchCompleted: "counts duration_ms best_variant best_score files_tracked",
    events.BatchFailed: "error_type error_message",
    events.BatchCancelled: "reason cancelled_by",
    events.PoolCreated: "replica_ids slots max_replicas max_queued",
    events.ActorInitialized: "actor_id replica_id node_id initialization_ms isolation",
    events.ActorFailed: "actor_id replica_id error_type error_message execution_ids",
    events.ActorRestarted: "actor_id replica_id replaces restart_count reason",
    events.VariantStarted: f"{ATTEMPT} queue_ms resumed_from",
    events.VariantCompleted: f"""{ATTEMPT} duration_ms node_count checkpoint_count scores
        overall_score files_tracked file_commit_id cpu_ms peak_rss_bytes usage""",
    events.VariantFailed: f"""{ATTEMPT} kind reason error_type error_message failed_at_node
        will_retry duration_ms node_count checkpoint_count""",
    events.VariantCancelled: f"{ATTEMPT} reason duration_ms",
    events.FilesTracked: f"""{ATTEMPT} file_commit_id checkpoint_id created modified deleted
        size_bytes paths""",
    events.FilesTrackingFailed: f"{ATTEMPT} failed_files error_message",
    events.BackpressureApplied: "level queued limit held",
    events.BackpressureReleased: "level duration_ms",
}

ARGS = {"root", "data_dir", "projects", "max_pending_executions", "max_body", "tokens", "executor"}
ARGS |= {"min_free"}
EXECUTOR_ARGS = {"min_replicas", "max_replicas", "slots", "max_queued", "num_cpus"}
EXECUTOR_ARGS |= {"isolation", "require", "shrink_after_s"}


def rows(table: str) -> list[tuple[str, bool]]:
    """Each line and whether it is there in this version."""
    found: list[tuple[str, bool]] = []
    for line in table.strip().splitlines():
        text, separator, _ = line.partition("issue ")
        found.append((" ".join(text.split()), not separator))
    return found


def test_the_design_s_own_spec_is_a_spec():
    assert specs.find_problems(SPEC) == []


@pytest.mark.parametrize(("model", "keys"), SPEC_KEYS, ids=lambda value: str(value)[:40])
def test_every_key_of_a_spec_is_there_and_no_other(model, keys):
    assert model.model_fields.keys() == keys


def test_every_key_of_a_case_is_there():
    assert specs.Case.__annotations__.keys() == SPEC["cases"][0].keys()


def test_the_defaults_of_a_spec_are_those_of_the_design():
    bare = specs.parse({"project": "p", "variants": [{"name": "v"}], "cases": [{"input": 1}]})
    written = specs.parse(SPEC)

    for part in ("limits", "retry", "workspace", "repetitions"):
        assert getattr(bare, part) == getattr(written, part)


def test_every_failure_kind_can_be_retried_that_the_design_lists():
    retry = specs.Retry(on=["crash", "lost", "timeout", "out_of_memory", "error"])
    assert len(retry.on) == len(get_args(specs.RetryableKind))


def test_the_design_s_own_project_file_is_one():
    ProjectFile.model_validate(PROJECT)
    ProjectFile.model_validate({"name": "one", "graph": "module:attr"})


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        (ProjectFile, set(PROJECT) | {"graph", "build"}),
        (ScoreRule, set(PROJECT["scores"]["tests_pass"])),
        (Environment, set(PROJECT["environment"])),
    ],
)
def test_every_key_of_a_project_is_there_and_no_other(model, keys):
    assert {field.alias or name for name, field in model.model_fields.items()} == keys


@pytest.fixture(scope="module")
def served() -> set[str]:
    settings = Settings(DataDir("/nowhere"), "/", [], 1, 1_024, {})
    app = routes.build(FakeIngress(), settings, {})
    return {
        f"{method} {route.path_format}"
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
        if route.path.startswith(("/v1", "/healthz", "/readyz"))
    }


@pytest.mark.parametrize(("route", "here"), rows(ROUTES))
def test_every_route_is_served(served, route, here):
    assert (route in served) is here


def test_no_other_route_is_served(served):
    assert served == {route for route, here in rows(ROUTES) if here}


@pytest.mark.parametrize(("row", "here"), rows(HANDLE_METHODS))
def test_every_handle_method_takes_what_the_design_says(row, here):
    name, *parameters = row.split()
    method = getattr(BatchIngress, name, None)
    assert (method is not None) is here
    if method is not None:
        taken = list(inspect.signature(method).parameters)[1:]
        assert taken[: len(parameters)] == parameters
        assert inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)


@pytest.mark.parametrize("bench", [TestBench, AsyncTestBench])
def test_both_benches_have_every_method(bench):
    assert bench.__test__ is False
    for line, here in rows(BENCH_METHODS):
        for name in line.split():
            assert hasattr(bench, name) is here, name


def find_commands(group: click.Group, prefix: str = "wtb") -> set[str]:
    found: set[str] = set()
    for name, command in group.commands.items():
        path = f"{prefix} {name}"
        found |= find_commands(command, path) if isinstance(command, click.Group) else {path}
    return found


@pytest.mark.parametrize(("command", "here"), rows(COMMANDS))
def test_every_command_is_there(command, here):
    assert (command in find_commands(cli.main)) is here


def test_there_are_the_seventeen_event_types():
    assert sorted(events.EVENT_TYPES) == sorted(EVENTS.split())


def test_every_argument_of_the_application_is_there():
    assert AppArgs.model_fields.keys() >= ARGS
    assert ExecutorArgs.model_fields.keys() == EXECUTOR_ARGS


def test_the_handle_methods_are_documented_with_their_parameters():
    """The table of docs/service.md: every public method, its parameters in their order."""
    text = (Path(__file__).parents[2] / "docs" / "service.md").read_text(encoding="utf-8")
    documented = {
        name: [part.partition("=")[0].strip() for part in parameters.split(",") if part.strip()]
        for name, parameters in re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", text, re.MULTILINE)
    }
    inside = {"respond_with_events", "respond_with_file"}  # for the routes only
    public = {
        name: list(inspect.signature(method).parameters)[1:]
        for name, method in vars(BatchIngress).items()
        if not name.startswith("_") and callable(method) and name not in inside
    }

    assert documented == public
