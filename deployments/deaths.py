"""Executor replicas whose processes are known to be dead, told to the collector.

Who sees a death first reports it: the dispatcher by a permit that fails, the watcher by Serve's
list. The collector ends the leases of such a replica at once.
"""

import asyncio
import logging

from ray.exceptions import ActorDiedError

from deployments.calls import Handle, call_until_answered
from deployments.messages import Death
from wtb_core.errors import WtbError

logger = logging.getLogger("ray.serve")

MAX_MESSAGE_CHARS = 2_000


class Deaths:
    """Reports each death once, in the background, until the collector has answered."""

    def __init__(self, collector: Handle) -> None:
        self._collector = collector
        self._known: set[str] = set()
        self._reports: set[asyncio.Task[None]] = set()

    def __contains__(self, actor_id: str) -> bool:
        """Whether the actor is known to be dead."""
        return actor_id in self._known

    def report(self, error: ActorDiedError) -> None:
        """Tell of the actor that `error` names; returns at once."""
        actor_id = error.actor_id
        if not actor_id or actor_id in self._known:
            return
        self._known.add(actor_id)
        death = Death(actor_id, type(error).__name__, str(error)[:MAX_MESSAGE_CHARS])
        names = {"executor_actor_id": actor_id}
        logger.warning("executor actor %s is dead", actor_id, extra=names)
        task = asyncio.create_task(self._report(death))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report(self, death: Death) -> None:
        try:
            await call_until_answered(self._collector, "report_death", death)
        except WtbError:
            logger.exception("the death of actor %s was not taken", death.actor_id)
