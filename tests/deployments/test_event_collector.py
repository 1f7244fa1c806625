"""The collector without Serve: leases."""

import asyncio
import time

from deployments import event_collector
from deployments.event_collector import EventCollector
from wtb_core import events as ev
from wtb_core.store.database import sqlite_url
from wtb_core.store.records import Claimant

REPLICA = ev.ActorInitialized(
    actor_id="a", replica_id="r", node_id="n", initialization_ms=1, isolation={}
)


def test_a_collector_that_was_held_up_takes_no_replica_for_lost(tmp_path, monkeypatch):
    """Heartbeats wait while the loop is busy; the ticks that come first must not end leases."""
    monkeypatch.setattr(event_collector, "LEASE_S", 0.5)
    monkeypatch.setattr(event_collector, "LATE_S", 0.3)

    async def main() -> None:
        collector = EventCollector(sqlite_url(tmp_path / "wtb.db"), 10)
        try:
            await collector.register(REPLICA)
            await collector.claim(Claimant("k", "r", "a"))
            await asyncio.sleep(0.05)
            time.sleep(1.5)  # noqa: ASYNC251 - the stall
            await collector._tick()
            assert "r" in collector._leases
            deadline = time.monotonic() + 20
            while "r" in collector._leases:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
        finally:
            collector._ticking.cancel()

    asyncio.run(main())
