"""The autoscaling policy: grow with the calls, shrink only in calm."""

from types import SimpleNamespace

import pytest

from deployments.pool_policy import never_shrink_while_busy


@pytest.mark.parametrize(
    ("calls", "target", "wanted"), [(0, 3, 0), (1, 3, 3), (8, 1, 2), (9, 1, 3), (1, 0, 1)]
)
def test_replicas_follow_calls_and_never_shrink_while_there_are_any(
    calls: float, target: int, wanted: int
) -> None:
    context = SimpleNamespace(
        total_num_requests=calls,
        target_num_replicas=target,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 4),
    )
    assert never_shrink_while_busy(context) == (wanted, {})
