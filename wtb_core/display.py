"""Batches in a terminal: live progress, the comparison, and what users' code said.

Text from user code is data: control sequences are taken out before it is shown.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from wtb_core.report import format_mean

MAX_TEXT = 300
PLAIN_WIDTH = 120
VERSION_CHARS = 12
MAX_PATH_CHARS = 4_096
_MARKS = {"created": ("A", "green"), "modified": ("M", "yellow"), "deleted": ("D", "red")}
_DIFF_COLOURS = (("+", "green"), ("-", "red"), ("@@", "cyan"))
# Control characters, and those that turn the direction of what follows them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_UNSAFE = re.compile(r"[\x7f-\x9f\ud800-\udfff]")
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
    """Text from user code in one line, without control sequences or markup, cut to `limit`."""
    bare = re.sub(r"\s*\n\s*", " ", strip_controls(text))
    return escape(bare if len(bare) <= limit else bare[: limit - 1] + "…")


def to_json(value: object) -> str:
    """`value` on one line; what a terminal could take for a control sequence is escaped."""
    return _UNSAFE.sub(
        lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False)
    )


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
            f"{payload['kind']}: {clean(' '.join(payload['reason'].split()), 160)}{again}"
        )
    elif event["type"] == "ray_batch_test_cancelled":
        yield f"cancelled by {clean(payload['cancelled_by'])}: {clean(payload['reason'])}"


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """The comparison as a table; the best variant is marked."""
    metrics: list[str] = comparison["metrics"]
    table = Table(title="Comparison", title_justify="left")
    table.add_column("variant", overflow="fold")
    cancelled = any(row["cancelled"] for row in comparison["variants"])
    for head in ("n", "succeeded", "failed", *(["cancelled"] if cancelled else [])):
        table.add_column(head, justify="right", overflow="fold")
    for metric in [*metrics, "overall"]:
        table.add_column(clean(metric), justify="right", overflow="fold")
    for row in comparison["variants"]:
        best = row["variant"] == comparison["best_variant"]
        failed = ", ".join(f"{kind} {n}" for kind, n in row["failed"].items()) or "0"
        means = [format_mean(row["scores"][metric]) for metric in metrics]
        table.add_row(
            f"{'* ' if best else '  '}{clean(row['variant'])}",
            *[str(row["n"]), str(row["succeeded"]), failed],
            *([str(row["cancelled"])] if cancelled else []),
            *[*means, format_mean(row["overall_score"])],
            style="bold" if best else "",
        )
    console.print(table)
    if comparison["best_variant"] is not None:
        console.print(
            f"* best mean overall score: {clean(comparison['best_variant'])} "
            f"({comparison['best_score']:.3f})"
        )
    elif len(metrics) > 1:
        console.print("no overall score: give metrics a `weight` under `scores` of the project")


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


def print_plan(plan: Mapping[str, Any], console: Console) -> None:
    """What a spec expands to: each variant with what it changes, and how much there is to run."""
    table = Table(title="Plan", title_justify="left")
    table.add_column("variant", overflow="fold")
    table.add_column("changes", overflow="fold")
    for variant in plan["variants"]:
        mark = "* " if variant["name"] == plan["baseline"] else "  "
        table.add_row(mark + clean(variant["name"]), clean(describe_changes(variant)))
    console.print(table)
    console.print(f"* the baseline: {clean(plan['baseline'])}")
    console.print(f"evaluators: {clean(', '.join(plan['evaluators']) or 'none')}")
    console.print(
        f"{plan['executions']} executions of {clean(plan['project'])} "
        f"@ {clean(plan['project_version'])[:VERSION_CHARS]}: {len(plan['variants'])} variants "
        f"x {plan['cases']} cases x {plan['repetitions']} repetitions; nothing was submitted"
    )


def describe_changes(variant: Mapping[str, Any]) -> str:
    """What a variant sets, as `nodes.propose=flip, config.budget=3`."""
    changes: list[str] = []
    if variant.get("graph", "default") != "default":
        changes.append(f"graph={variant['graph']}")
    for section in ("nodes", "config", "context"):
        for key, value in variant.get(section, {}).items():
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            changes.append(f"{section}.{key}={text}")
    changes += [f"file {path}" for path in variant.get("files", {})]
    if variant.get("recursion_limit") is not None:
        changes.append(f"recursion_limit={variant['recursion_limit']}")
    return ", ".join(changes) or "nothing"


def print_batches(page: Mapping[str, Any], console: Console) -> None:
    """A page of batches, one a line."""
    for item in page["items"]:
        counts = item["counts"]
        name = item["name"]
        console.print(
            f"{clean(item['batch_id'])}  {item['status']:<10} "
            f"{counts['succeeded']}/{counts['total']} succeeded  {clean(item['project'])}"
            f"{'' if name is None else '  ' + clean(name)}",
            soft_wrap=True,
        )


def print_batch(batch: Mapping[str, Any], failures: Mapping[str, int], console: Console) -> None:
    """A batch's status, counts, pace and failures by kind."""
    counts, pace = batch["counts"], batch["progress"]
    ended = counts["succeeded"] + counts["failed"] + counts["cancelled"]
    rows = {
        "batch": batch["batch_id"],
        "name": batch["name"],
        "project": f"{batch['project']} @ {str(batch['project_version'])[:VERSION_CHARS]}",
        "status": batch["status"],
        "retry of": batch["retry_of"],
        "forked from": _describe_origin(batch.get("forked_from")),
        "labels": ", ".join(f"{k}={v}" for k, v in (batch.get("labels") or {}).items()),
        "submitted by": batch.get("submitted_by"),
        "created": batch["created_at"],
        "started": batch["started_at"],
        "finished": batch["finished_at"],
        "executions": f"{ended} of {counts['total']} ended: {counts['succeeded']} succeeded, "
        f"{counts['failed']} failed, {counts['cancelled']} cancelled; {counts['running']} running",
        "failures": ", ".join(f"{kind} {n}" for kind, n in sorted(failures.items())),
        "pace": _describe_pace(pace),
    }
    _print_rows(rows, console)


def print_execution_in_full(execution: Mapping[str, Any], console: Console) -> None:
    """One execution with its scores, its failure, its attempts and its output."""
    failure = execution["failure"]
    scores = execution["scores"]
    rows = {
        "execution": execution["execution_id"],
        "variant": execution["variant"],
        "case": execution["case_id"],
        "repetition": execution["repetition"],
        "status": execution["status"],
        "failure": None if failure is None else f"{failure['kind']}: {failure['reason']}",
        "raised": _describe_exception(failure),
        "scores": ", ".join(f"{name} {_describe_score(value)}" for name, value in scores.items()),
        "overall score": _describe_score(execution["overall_score"]),
        "duration": None if execution["duration_ms"] is None else f"{execution['duration_ms']} ms",
        "reused from": execution.get("reused_from"),
    }
    _print_rows(rows, console)
    for metric, comment in (execution.get("score_comments") or {}).items():
        console.print(f"  {clean(metric)}: {clean(comment)}")
    for metric, message in (execution.get("score_errors") or {}).items():
        console.print(f"  {clean(metric)} could not be given: {clean(message)}")
    for failure in execution.get("tracking_failures") or []:
        console.print(f"  files could not be tracked: {clean(failure['error_message'])}")
    if traceback := (execution.get("failure") or {}).get("traceback"):
        console.print(escape(strip_controls(traceback).rstrip()), soft_wrap=True)
    for attempt in execution.get("attempts", []):
        reason = (attempt.get("failure") or {}).get("reason")
        console.print(
            f"  attempt {attempt['attempt']}: {attempt['status']}"
            f"{'' if reason is None else ': ' + clean(reason)}"
        )
    if execution.get("output") is not None:
        text = json.dumps(execution["output"], ensure_ascii=False, indent=2)
        console.print(escape(strip_controls(text)), soft_wrap=True)


def print_checkpoints(items: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Each checkpoint, those of the root with the number that `wtb execution fork` takes."""
    number = 0
    for item in items:
        if item["ns"]:
            where = f"    in {clean(item['ns'])}: "
        else:
            where = f"{number:>3} "
            number += 1
        note = "" if item["ns"] or item["forkable"] else "  its files are not known"
        console.print(
            f"{where} {clean(item['checkpoint_id'])}  step {item['step']}  "
            f"{clean(item['source'])}  {item['created_at']}{note}",
            soft_wrap=True,
        )


def print_changes(found: Mapping[str, Any], console: Console) -> None:
    """Each path that differs, with a mark and its size, then how many there are."""
    for item in found["items"]:
        mark, colour = _MARKS[item["change"]]
        path = clean(item["path"], MAX_PATH_CHARS)
        console.print(f"[{colour}]{mark}[/]  {path}{_describe_size(item)}", soft_wrap=True)
    counts = ", ".join(f"{count} {change}" for change, count in found["counts"].items())
    console.print(f"{counts}; {clean(found['from'])} to {clean(found['to'])}", soft_wrap=True)


def print_diff(found: Mapping[str, Any], console: Console) -> None:
    """Unified diffs as they are, so that `patch` can read them; what has none is named."""
    coloured = console.is_terminal and not console.no_color
    for item in found["items"]:
        for line in _diff_lines(item):
            colour = next((c for start, c in _DIFF_COLOURS if line.startswith(start)), None)
            console.file.write(f"{click.style(line, fg=colour) if coloured else line}\n")


def _diff_lines(item: Mapping[str, Any]) -> Iterator[str]:
    name = strip_controls(item["path"]).replace("\n", " ")
    if item["diff"]:
        yield from strip_controls(item["diff"]).removesuffix("\n").split("\n")
    if item["binary"]:
        yield f"The binary file {name} was {item['change']}"
    elif item["diff_truncated"]:
        yield f"The diff of {name} is cut" if item["diff"] else f"{name} is too large for a diff"
    elif not item["diff"]:
        yield f"The {item['kind']} {name} was {item['change']}"
    if item["change"] == "modified" and item["mode_before"] != item["mode_after"]:
        yield f"The mode of {name} was {item['mode_before']} and is {item['mode_after']}"


def _describe_size(item: Mapping[str, Any]) -> str:
    if item["kind"] != "file":
        return f"  {item['kind']}"
    sizes = (item["size_before"], item["size_after"])
    return f"  {' to '.join(str(size) for size in sizes if size is not None)} bytes"


def print_projects(items: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Each project with its version and what is wrong with it."""
    for item in items:
        version = str(item["version"] or "unusable")[:VERSION_CHARS]
        line = f"{clean(item['name'])}  {version}  {clean(item['source'])}"
        console.print(line, soft_wrap=True)
        for problem in item["problems"]:
            console.print(f"  problem: {clean(problem, 2_000)}", soft_wrap=True)


def print_project(item: Mapping[str, Any], console: Console) -> None:
    """What one project offers."""
    print_projects([item], console)
    for name, graph in item.get("graphs", {}).items():
        nodes = ", ".join(graph.get("nodes", [])) or "none to swap"
        console.print(f"  graph {clean(name)}: {clean(graph['kind'])}; nodes: {clean(nodes)}")
    for node, implementations in item.get("nodes", {}).items():
        console.print(f"  node {clean(node)}: {clean(', '.join(implementations))}")
    if item.get("evaluators"):
        console.print(f"  evaluators: {clean(', '.join(item['evaluators']))}")


def print_record(record: Mapping[str, Any], console: Console) -> None:
    """A few facts, one a line, as `key: value`."""
    for key, value in record.items():
        text = value if isinstance(value, str) else json.dumps(value)
        console.print(f"{key}: {clean(text)}", soft_wrap=True)


def _print_rows(rows: Mapping[str, Any], console: Console) -> None:
    for key, value in rows.items():
        if value not in {None, ""}:
            console.print(f"{key:<13} {clean(value)}", soft_wrap=True)


def _describe_origin(origin: Mapping[str, Any] | None) -> str | None:
    if origin is None:
        return None
    return f"{origin['execution_id']}, checkpoint {origin['checkpoint_id']}"


def _describe_pace(pace: Mapping[str, Any]) -> str:
    parts = [] if pace["elapsed_ms"] is None else [f"{pace['elapsed_ms'] / 1000:.1f} s"]
    if pace["per_s"]:
        parts.append(f"{pace['per_s']:.2f} executions/s")
    if pace["remaining_ms"]:
        parts.append(f"about {pace['remaining_ms'] // 1000} s left")
    return ", ".join(parts)


def _describe_exception(failure: Mapping[str, Any] | None) -> str | None:
    if failure is None or failure["error_type"] is None:
        return None
    where = "" if failure["node"] is None else f" in {failure['node']}"
    return f"{failure['error_type']}{where}: {failure['message']}"


def _describe_score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
