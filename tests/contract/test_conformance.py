"""The saver against LangGraph's own kit, over an unscoped session on a real store."""

import asyncio
from contextlib import closing

from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import BASE_CAPABILITIES
from saver_bench import Served

from wtb_core.checkpoint_store import CheckpointStore


def test_the_saver_passes_what_it_claims(tmp_path):
    """Copying threads, pruning and deleting runs are optional, and not claimed."""
    with (
        closing(CheckpointStore(tmp_path / "checkpoints.db")) as store,
        closing(Served(store)) as served,
    ):

        @checkpointer_test(name="SessionSaver")
        async def make_saver():
            yield served.saver()

        report = asyncio.run(validate(make_saver))

    failures = {name: found.failures for name, found in report.results.items() if found.failures}
    assert failures == {}
    assert report.passed_all()
    detected = {name for name, found in report.results.items() if found.detected}
    assert detected == {capability.value for capability in BASE_CAPABILITIES}
