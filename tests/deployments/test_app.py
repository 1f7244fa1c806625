"""`args` of the Serve config: what is allowed, and what is said of the rest."""

import inspect
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments.app import AppArgs, ExecutorArgs, build_app
from deployments.pool_watcher import WATCH_S
from deployments.variant_executor import VariantExecutor
from wtb_core.errors import InvalidRequest

ROOT = Path(__file__).parent.parent.parent


def test_the_embedded_config_is_valid_and_gives_its_documented_args() -> None:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    args = AppArgs.model_validate(config["applications"][0]["args"])
    assert config["http_options"]["host"] == "127.0.0.1"
    assert args.executor.model_dump() == {
        "min_replicas": 1,
        "max_replicas": 2,
        "slots": 4,
        "max_queued": 16,
        "num_cpus": 0.5,
        "shrink_after_s": 60.0,
        "isolation": "auto",
        "require": None,
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"surprise": 1}, "unknown keys in args: surprise; known are: root, data_dir"),
        ({"executor": {"slotz": 4}}, "unknown keys in args: slotz; known are: min_replicas"),
        ({"executor": {"slots": 0}}, "executor.slots"),
        ({"executor": {"slots": 8, "max_queued": 4}}, "the pool would never grow"),
        ({"executor": {"min_replicas": 3}}, "larger than executor.max_replicas"),
        ({"max_pending_executions": 0}, "max_pending_executions"),
    ],
)
def test_wrong_args_are_refused_with_what_is_wrong(args: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AppArgs.model_validate(args)


def test_an_application_is_bound_without_starting_anything(tmp_path: Path) -> None:
    app = build_app(AppArgs(root=str(tmp_path)))
    deployment = app._bound_deployment
    assert deployment.name == "BatchIngress"
    assert (tmp_path / ".wtb").is_dir()
    assert not (tmp_path / ".wtb" / "wtb.db").exists()


def test_the_executors_limits_are_serves_own(tmp_path: Path) -> None:
    args = AppArgs.model_validate(
        {"root": str(tmp_path), "executor": {"slots": 3, "max_queued": 7, "max_replicas": 5}}
    )
    executor = build_app(args)._bound_deployment.init_args[1]._bound_deployment
    assert executor.name == "VariantExecutor"
    assert executor.max_ongoing_requests == 3
    assert executor.max_queued_requests == 7
    scaling = executor._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 5)
    assert scaling.get_target_ongoing_requests() == 3
    assert scaling.policy.policy_kwargs == {"shrink_after_s": 60.0}


def test_no_deployment_displaces_the_logging_of_the_serve_config(tmp_path: Path) -> None:
    ingress = build_app(AppArgs(root=str(tmp_path)))._bound_deployment
    collector, executor = (bound._bound_deployment for bound in ingress.init_args[:2])
    for deployment in (ingress, collector, executor):
        assert deployment._deployment_config.logging_config is None


def test_an_executor_that_stops_is_there_for_several_looks_of_the_watcher(tmp_path: Path) -> None:
    executor = build_app(AppArgs(root=str(tmp_path)))._bound_deployment.init_args[1]
    config = executor._bound_deployment._deployment_config
    assert config.graceful_shutdown_wait_loop_s >= 3 * WATCH_S


def test_an_executor_hands_back_well_before_serve_kills_it(tmp_path: Path) -> None:
    executor = build_app(AppArgs(root=str(tmp_path)))._bound_deployment.init_args[1]
    bound = executor._bound_deployment
    arguments = inspect.signature(VariantExecutor).bind(*bound.init_args, **bound.init_kwargs)
    grace_s = bound._deployment_config.graceful_shutdown_timeout_s
    assert arguments.arguments["drain_s"] <= grace_s - 15


def read_args(path: str) -> dict:
    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / path).read_text()))
    (application,) = config.applications
    assert application.import_path == "deployments.app:build_app"
    return application.args


@pytest.mark.parametrize("path", ["serve_config.yaml", "configs/cluster.yaml"])
def test_a_config_of_the_repository_is_one_that_serve_and_the_application_take(path):
    AppArgs.model_validate(read_args(path))


def test_the_cluster_config_has_every_argument():
    args = read_args("configs/cluster.yaml")

    assert args.keys() == AppArgs.model_fields.keys()
    assert args["executor"].keys() == ExecutorArgs.model_fields.keys()


def test_a_cluster_keeps_store_blobs_and_cache_apart(monkeypatch, tmp_path):
    monkeypatch.setenv("WTB_TOKEN_ALICE", "a" * 20)
    monkeypatch.setenv("WTB_TOKEN_NIGHTLY", "n" * 20)
    places = {
        "root": str(tmp_path / "head"),
        "blob_dir": str(tmp_path / "shared" / "blobs"),
        "cache_dir": str(tmp_path / "node"),
    }

    build_app(AppArgs.model_validate(read_args("configs/cluster.yaml") | places))

    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    claims = {name for name in made if name.startswith("shared/blobs/stores")}
    assert len(claims) == 2, "the folder of blobs knows its one store"
    assert made - claims == {
        *("head", "head/data", "shared", "shared/blobs"),
        *("node", "node/bases", "node/runs"),
    }


def test_a_token_that_is_not_set_is_refused_before_anything_is_deployed(tmp_path):
    args = {"root": str(tmp_path), "tokens": {"alice": "env:WTB_TOKEN_OF_NOBODY"}}

    with pytest.raises(InvalidRequest, match="WTB_TOKEN_OF_NOBODY is not set"):
        build_app(AppArgs.model_validate(args))
