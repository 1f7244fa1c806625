"""Nothing is lost while things die at random: the short form of `make chaos`."""

import tempfile
from pathlib import Path

from benchmarks.chaos import Options, run

KINDS = ("child", "replica", "collector", "ingress", "nursery", "controller", "proxy", "ray")


def test_nothing_is_lost_while_things_die() -> None:
    """Each kind of process is killed once or more, and the checker finds nothing wrong."""
    options = Options(
        seed=5,
        minutes=0.75,
        executions=200,
        pause_s=2.5,
        drain_s=90,
        deck=dict.fromkeys(KINDS, 1),
    )
    with tempfile.TemporaryDirectory(prefix="wtb-chaos-") as folder:  # Ray wants a short path
        assert run(options, Path(folder)) == 0
