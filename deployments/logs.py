"""What Serve's logger is kept free of in our deployments: the daily business of calls.

It is a filter of ours and not the deployments' own `logging_config`, because that would displace
the one of the Serve config, with its encoding and level.
"""

import logging

from wtb_core.errors import WtbError

logger = logging.getLogger("ray.serve")

PUMPING = ("Request dropped due to backpressure", "Failed to route request after")
"""How Serve begins to tell of refused permits, and of those that wait for a slot."""


def quieten() -> None:
    """Keep three things out of the log of this process; saying it again is harmless.

    They are a line for each call, our own errors, which are answers to a caller and no failures of
    Serve, and the refusals that the permit pump lives by.
    """
    logger.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    if getattr(record, "serve_access_log", False):
        return False
    if record.exc_info and isinstance(record.exc_info[1], WtbError):
        return False
    return not record.getMessage().startswith(PUMPING)
