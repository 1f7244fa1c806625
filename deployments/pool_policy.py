"""How the executor pool grows and shrinks: it grows with the load, and shrinks by idle replicas.

Serve chooses whom it stops: replicas that do not run yet, then those that are not on the head node,
node by node, each time the newest (`DeploymentScheduler._get_replicas_to_stop` in Ray 2.60). It
does not ask whether they are idle, so the policy does, and shrinks by as many as would be idle
whichever node Serve begins with. What comes in just then is finished or handed back.
"""

import functools
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import ray
from ray.serve.config import AutoscalingContext

FRESH_S = 5.0
"""How old the last word of a replica may be; one that says nothing is taken for busy."""
HEAD_RESOURCE = "node:__internal_head__"


class FollowLoad:
    """Serve's autoscaling policy; it makes one for each deployment of the executors.

    As many replicas as the calls that run or wait fill. Fewer only when that has been so for
    `shrink_after_s`, and by no more than are idle at that moment.
    """

    def __init__(self, shrink_after_s: float) -> None:
        self._shrink_after_s = shrink_after_s
        self._calm_since: float | None = None

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas that there should be."""
        assert context.config is not None
        target = context.target_num_replicas
        wanted = math.ceil(
            context.total_num_requests / context.config.get_target_ongoing_requests()
        )
        if wanted >= target:
            self._calm_since = None
            return wanted, {}
        now = time.monotonic()
        if self._calm_since is None:
            self._calm_since = now
        if now - self._calm_since < self._shrink_after_s:
            return target, {}
        return max(wanted, target - _count_idle(context)), {}


@functools.cache
def _find_place() -> dict[str, float]:
    """The node of this process as a number, which is all that Serve hands to a policy."""
    node_id = ray.get_runtime_context().get_node_id()
    is_head = any(
        node["NodeID"] == node_id and HEAD_RESOURCE in node["Resources"] for node in ray.nodes()
    )
    return {"node": float(int(node_id[:12], 16)), "on_head": float(is_head)}


def describe_load(held: int) -> dict[str, float]:
    """What a replica that holds so many attempts tells the policy."""
    return {"held": float(held), **_find_place()}


def _count_idle(context: AutoscalingContext) -> int:
    """How many replicas Serve could stop now with none of them at work."""
    series = context.raw_metrics or {}
    oldest = (context.current_time or time.time()) - FRESH_S

    def read(name: str, replica: Any) -> float | None:
        points = series.get(name, {}).get(replica, ())
        return points[-1].value if points and points[-1].timestamp >= oldest else None

    head: list[bool] = []
    others: defaultdict[float | None, list[bool]] = defaultdict(list)
    for replica in reversed(context.running_replicas):
        idle = read("held", replica) == 0
        if read("on_head", replica) == 1:
            head.append(idle)
        else:
            others[read("node", replica)].append(idle)
    starting = max(context.target_num_replicas - len(context.running_replicas), 0)
    busy = [node for node in others.values() if not all(node)]
    if busy:
        return starting + min(map(_count_leading, busy))
    return starting + sum(map(len, others.values())) + _count_leading(head)


def _count_leading(idle: Sequence[bool]) -> int:
    """How many are idle before the first that is not."""
    return idle.index(False) if False in idle else len(idle)
