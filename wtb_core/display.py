"""Batches in a terminal: live progress, the comparison, and what users' code said.

Text from user code is data: control sequences are taken out before it is shown.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from wtb_core.report import format_mean

MAX_TEXT = 300
PLAIN_WIDTH = 120
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)", re.DOTALL)


def make_console(*, stderr: bool = False) -> Console:
    """A console that is wide enough for a table where there is no terminal to ask."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_WIDTH)
    return console


def strip_controls(text: object) -> str:
    """Text from user code without control sequences; lines and tabs stay."""
    return _CONTROL.sub("", _ESCAPE.sub("", str(text)))


def clean(text: object, limit: int = MAX_TEXT) -> str:
    """Text from user code without control sequences or markup, cut to `limit` characters."""
    bare = strip_controls(text)
    return escape(bare if len(bare) <= limit else bare[: limit - 1] + "…")


def follow(
    events: Iterable[Mapping[str, Any]], total: int, console: Console
) -> Iterator[Mapping[str, Any]]:
    """Show a batch's events as they pass: a progress bar in a terminal, else a line a second."""
    if not console.is_terminal:
        yield from _follow_plainly(events, console)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("executions", total=total, state="")
        running: set[str] = set()
        succeeded = failed = cancelled = 0
        for event in events:
            kind, payload = event["type"], event["payload"]
            if kind == "ray_variant_execution_started":
                running.add(payload["execution_id"])
            elif kind.startswith("ray_variant_execution_"):
                running.discard(payload["execution_id"])
                succeeded += kind.endswith("_completed")
                failed += kind.endswith("_failed") and not payload["will_retry"]
                cancelled += kind.endswith("_cancelled")
            for line in _notable(event):
                progress.console.print(line)
            state = f"{len(running)} running, {succeeded} succeeded, {failed} failed"
            progress.update(task, completed=succeeded + failed + cancelled, state=state)
            yield event


def _follow_plainly(
    events: Iterable[Mapping[str, Any]], console: Console
) -> Iterator[Mapping[str, Any]]:
    for event in events:
        if event["type"] == "ray_batch_test_progress":
            p = event["payload"]
            ended = p["succeeded"] + p["failed"] + p["cancelled"]
            left = (
                "" if p["remaining_ms"] is None else f", about {p['remaining_ms'] // 1000} s left"
            )
            console.print(
                f"{ended}/{p['total']} ended, {p['running']} running, "
                f"{p['failed']} failed, {p['per_s']:.1f}/s{left}"
            )
        for line in _notable(event):
            console.print(line)
        yield event


def _notable(event: Mapping[str, Any]) -> Iterator[str]:
    payload = event["payload"]
    if event["type"] == "ray_batch_test_started":
        yield (
            f"started: {payload['executions']} executions of {clean(payload['project'])} "
            f"({len(payload['variants'])} variants x {payload['cases']} cases "
            f"x {payload['repetitions']} repetitions)"
        )
    elif event["type"] == "ray_variant_execution_failed":
        again = ", will be tried again" if payload["will_retry"] else ""
        yield (
            f"[red]failed[/]: {clean(payload['variant'])} / {clean(payload['case_id'])}: "
            f"{payload['kind']}: {clean(payload['reason'], 160)}{again}"
        )
    elif event["type"] == "ray_batch_test_cancelled":
        yield f"cancelled by {clean(payload['cancelled_by'])}: {clean(payload['reason'])}"


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """The comparison as a table; the best variant is marked."""
    metrics: list[str] = comparison["metrics"]
    table = Table(title="Comparison", title_justify="left")
    table.add_column("variant")
    for head in ("n", "succeeded", "failed"):
        table.add_column(head, justify="right")
    for metric in [*metrics, "overall"]:
        table.add_column(clean(metric), justify="right")
    for row in comparison["variants"]:
        best = row["variant"] == comparison["best_variant"]
        failed = ", ".join(f"{kind} {n}" for kind, n in row["failed"].items()) or "0"
        means = [format_mean(row["scores"][metric]) for metric in metrics]
        table.add_row(
            f"{'* ' if best else '  '}{clean(row['variant'])}",
            *[str(row["n"]), str(row["succeeded"]), failed],
            *[*means, format_mean(row["overall_score"])],
            style="bold" if best else "",
        )
    console.print(table)
    if comparison["best_variant"] is not None:
        console.print(
            f"* best mean overall score: {clean(comparison['best_variant'])} "
            f"({comparison['best_score']:.3f})"
        )


def find_telling(executions: Iterable[Mapping[str, Any]], count: int = 3) -> list[dict[str, Any]]:
    """Executions that say most about the difference between variants.

    These are the best scores that the fewest variants reached on their case, each on a case of its
    own, of as many different variants as possible.
    """
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for execution in executions:
        if execution["overall_score"] is not None:
            by_case.setdefault(execution["case_id"], []).append(execution)
    wins: list[tuple[int, int, Mapping[str, Any]]] = []
    for order, (_, group) in enumerate(by_case.items()):
        best = max(execution["overall_score"] for execution in group)
        winners = [execution for execution in group if execution["overall_score"] == best]
        if len(winners) < len(group):
            wins.append((len(winners), order, winners[0]))
    wins.sort(key=lambda win: win[:2])
    telling: list[dict[str, Any]] = []
    for fresh_only in (True, False):
        for _, _, execution in wins:
            seen = {chosen["variant"] for chosen in telling}
            cases = {chosen["case_id"] for chosen in telling}
            is_new = execution["variant"] not in seen or not fresh_only
            if len(telling) < count and is_new and execution["case_id"] not in cases:
                telling.append(dict(execution))
    return telling


def print_execution(execution: Mapping[str, Any], console: Console) -> None:
    """One execution in a few lines."""
    score = execution["overall_score"]
    console.print(
        f"[bold]{clean(execution['variant'])} / {clean(execution['case_id'])}[/]: "
        f"{execution['status']}, score {'-' if score is None else f'{score:.3f}'}, "
        f"{execution['duration_ms']} ms, {execution['node_count']} nodes, "
        f"{execution['checkpoint_count']} checkpoints"
    )
    for metric, comment in execution["score_comments"].items():
        console.print(f"  {clean(metric)}: {clean(comment)}")
    output = json.dumps(execution.get("output"), ensure_ascii=False)
    console.print(f"  output: {clean(output)}")
    console.print(f"  {execution['execution_id']}")
