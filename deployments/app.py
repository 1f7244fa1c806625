"""The one file that binds: `args` of the Serve config in, the application out."""

import logging
import os
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve import Application
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    BackpressureConfig,
    RequestRouterConfig,
)

from deployments import routes
from deployments.batch_ingress import BatchIngress, Settings
from deployments.event_collector import EventCollector
from deployments.pool_watcher import PoolLimits
from deployments.variant_executor import VariantExecutor
from wtb_core.data import DataDir
from wtb_core.sandbox.ladder import Isolation
from wtb_core.tokens import resolve_tokens

logger = logging.getLogger("ray.serve")

SHUTDOWN_TIMEOUT_S = 120.0
"""How long Serve waits for an executor that it stops before it kills it."""
DRAIN_S = 100.0
"""How long the executor then waits for checkpoints; what is left is for ending what has none."""
HEALTH_CHECK_S = 1.0
DRAIN_LOOP_S = 0.2
STOP_SEEN_S = 1.0
"""How long an executor that stops is there at the least: several looks of the watcher."""
RETRY_AFTER_S = 1.0
HEAD_NODE = {"node:__internal_head__": 0.001}


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, raw: Any) -> Any:
        if isinstance(raw, dict):
            unknown = sorted(set(raw) - set(cls.model_fields))
            if unknown:
                known = ", ".join(cls.model_fields)
                raise ValueError(f"unknown keys in args: {', '.join(unknown)}; known are: {known}")
        return raw


class ExecutorArgs(_Args):
    """The executor pool. `slots` executions run at once in a replica.

    `isolation` says how workspaces are made, `auto` the best that the machine can; with `require` a
    replica that reaches less does not start. Idle replicas are stopped `shrink_after_s` after the
    load has gone down.
    """

    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=2, ge=1)
    slots: int = Field(default=4, ge=1)
    max_queued: int = Field(default=16, ge=1)
    num_cpus: float = Field(default=0.5, ge=0)
    shrink_after_s: float = Field(default=60, ge=0)
    isolation: Isolation = "auto"
    require: Literal["A", "B"] | None = None

    @model_validator(mode="after")
    def _check(self) -> "ExecutorArgs":
        if self.min_replicas > self.max_replicas:
            raise ValueError("executor.min_replicas is larger than executor.max_replicas")
        if self.max_queued < self.slots:
            raise ValueError(
                "executor.max_queued is smaller than executor.slots; the pool would never grow"
            )
        return self


class AppArgs(_Args):
    """The `args` of an application in a Serve config. Relative paths start at `root`."""

    root: str | None = None
    data_dir: str = ".wtb"
    blob_dir: str | None = None
    cache_dir: str | None = None
    projects: list[str] = ["examples/*/project.yaml"]
    max_pending_executions: int = Field(default=100_000, ge=1)
    min_free: int = Field(default=256 * 1024**2, ge=0)
    max_body: int = Field(default=64 * 1024**2, ge=1024)
    tokens: dict[str, str] = {}
    executor: ExecutorArgs = ExecutorArgs()


class HttpIngress(BatchIngress):
    """The ingress with its HTTP routes, which Serve asks for when the replica is made."""

    def __serve_build_asgi_app__(self) -> Any:
        return routes.build(self, self.settings, resolve_tokens(self.settings.tokens))


class PooledExecutor(VariantExecutor):
    """The executor as Serve stops it: gracefully, by its destructor, once no permit is left."""

    async def __del__(self) -> None:
        await self.close()


def build_app(args: AppArgs) -> Application:
    """The application for `args`; nothing is started here."""
    root = Path(args.root or os.environ.get("WTB_ROOT") or ".").resolve()
    resolve_tokens(args.tokens)  # refused here, where the message reaches who deploys
    data = DataDir(
        root / args.data_dir,
        None if args.blob_dir is None else root / args.blob_dir,
        None if args.cache_dir is None else root / args.cache_dir,
    )
    logger.info("paths are relative to %s, data is in %s", root, data.path)
    pool = args.executor
    limits = PoolLimits(pool.slots, pool.min_replicas, pool.max_replicas, pool.max_queued)
    settings = Settings(
        data=data,
        root=str(root),
        projects=args.projects,
        max_pending_executions=args.max_pending_executions,
        max_body_bytes=args.max_body,
        tokens=args.tokens,
    )
    data.create()
    router = RequestRouterConfig.model_validate({"initial_backoff_s": 0.01, "max_backoff_s": 0.1})
    shared: dict[str, Any] = {
        "health_check_period_s": HEALTH_CHECK_S,
        "graceful_shutdown_wait_loop_s": DRAIN_LOOP_S,
        "request_router_config": router,
    }
    deployment = cast("Any", serve.deployment)  # its overloads do not know classes with options
    collector = deployment(
        EventCollector,
        num_replicas=1,
        max_ongoing_requests=1_000,
        max_queued_requests=2_000,
        ray_actor_options={"num_cpus": 0.1, "resources": HEAD_NODE},
        graceful_shutdown_timeout_s=10.0,
        **shared,
    ).bind(*(data.store_url, args.max_pending_executions, (data.path, data.blobs), args.min_free))
    executor = deployment(
        PooledExecutor,
        name="VariantExecutor",
        max_ongoing_requests=pool.slots,
        max_queued_requests=pool.max_queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=pool.min_replicas,
            max_replicas=pool.max_replicas,
            target_ongoing_requests=pool.slots,
            metrics_interval_s=0.5,
            look_back_period_s=1.0,
            upscale_delay_s=0.5,
            downscale_delay_s=0.0,  # the policy itself waits
            policy=AutoscalingPolicy(
                policy_function="deployments.pool_policy:FollowLoad",
                policy_kwargs={"shrink_after_s": pool.shrink_after_s},
            ),
        ),
        ray_actor_options={"num_cpus": pool.num_cpus},
        graceful_shutdown_timeout_s=SHUTDOWN_TIMEOUT_S,
        **(shared | {"graceful_shutdown_wait_loop_s": STOP_SEEN_S}),
    ).bind(collector, data, pool.isolation, pool.require, DRAIN_S)
    ingress = deployment(
        serve.ingress()(HttpIngress),
        name="BatchIngress",
        num_replicas=1,
        max_ongoing_requests=1_000,
        max_queued_requests=600,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER_S),
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=10.0,
        **shared,
    )
    return ingress.bind(collector, executor, settings, limits)
