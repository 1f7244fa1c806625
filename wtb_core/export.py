"""A batch's results as files that other programs read: JSON, JSON lines, CSV, JUnit XML."""

import contextlib
import csv
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

from wtb_core.display import to_json
from wtb_core.states import INFRASTRUCTURE_KINDS

FORMATS: Final = ("json", "jsonl", "csv", "junit")
_NO_XML = re.compile(r"[^\t\n\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, and the control characters that it discourages."""

Json = Mapping[str, Any]


def export(
    format_: str, batch: Json, comparison: Json, executions: Iterable[Json]
) -> Iterator[str]:
    """The text of an export in pieces. JSON lines and CSV are one execution a row."""
    if format_ == "json":
        yield to_json({"batch": batch, "comparison": comparison, "executions": list(executions)})
        yield "\n"
    elif format_ == "jsonl":
        yield from (to_json(execution) + "\n" for execution in executions)
    elif format_ == "csv":
        yield from _to_csv(comparison["metrics"], executions)
    else:
        yield _to_junit(batch, executions)


def write_atomically(path: Path, pieces: Iterable[str]) -> None:
    """Write a file that is there whole or, when the pieces fail, not at all.

    A file that was there keeps its content until then, and its mode.
    """
    path = path.resolve()
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        mode = 0o666 & ~mask
    number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8", newline="") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:  # raised again below
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def _to_csv(metrics: list[str], executions: Iterable[Json]) -> Iterator[str]:
    columns = [
        "execution_id",
        "variant",
        "case_id",
        "repetition",
        "status",
        "attempt",
        "failure_kind",
        "failure_reason",
        "overall_score",
        "duration_ms",
    ]
    yield _row([*columns, *(f"scores.{metric}" for metric in metrics), "output"])
    for execution in executions:
        failure = execution["failure"] or {}
        known = {
            **execution,
            "failure_kind": failure.get("kind"),
            "failure_reason": failure.get("reason"),
        }
        scores = [execution["scores"].get(metric) for metric in metrics]
        output = execution.get("output")
        text = None if output is None else json.dumps(output, ensure_ascii=False)
        yield _row([*(known[column] for column in columns), *scores, text])


def _row(cells: list[Any]) -> str:
    out = io.StringIO()
    csv.writer(out).writerow(cells)
    return out.getvalue().encode(errors="replace").decode()


def _to_junit(batch: Json, executions: Iterable[Json]) -> str:
    """One suite a variant, one case an execution.

    A variant's own failure is a `failure`, one of the infrastructure an `error`, and what was
    cancelled or has not ended is `skipped`. Scores are properties and fail nothing.
    """
    suites = ET.Element("testsuites", name=_xml(batch["name"] or batch["batch_id"]))
    by_variant: dict[str, ET.Element] = {}
    tallies: dict[str, dict[str, int]] = {}
    seconds: dict[str, float] = {}
    for execution in executions:
        variant = execution["variant"]
        suite = by_variant.get(variant)
        if suite is None:
            suite = by_variant[variant] = ET.SubElement(suites, "testsuite", name=_xml(variant))
            tallies[variant] = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
            seconds[variant] = 0.0
        seconds[variant] += (execution["duration_ms"] or 0) / 1000
        tallies[variant]["tests"] += 1
        what = _add_case(suite, execution)
        if what is not None:
            tallies[variant][what] += 1
    for variant, suite in by_variant.items():
        for name, count in tallies[variant].items():
            suite.set(name, str(count))
        suite.set("time", f"{seconds[variant]:.3f}")
    for name in ("tests", "failures", "errors", "skipped"):
        suites.set(name, str(sum(tally[name] for tally in tallies.values())))
    suites.set("time", f"{sum(seconds.values()):.3f}")
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ET.Element, execution: Json) -> str | None:
    """Add one test case; returns which of the suite's counters it raises beside `tests`."""
    name = str(execution["case_id"])
    if execution["repetition"]:
        name += f" [repetition {execution['repetition']}]"
    case = ET.SubElement(
        suite,
        "testcase",
        name=_xml(name),
        classname=_xml(execution["variant"]),
        time=f"{(execution['duration_ms'] or 0) / 1000:.3f}",
    )
    properties = ET.SubElement(case, "properties")
    known = {
        "execution_id": execution["execution_id"],
        **{f"score.{metric}": value for metric, value in execution["scores"].items()},
        "overall_score": execution["overall_score"],
    }
    for key, value in known.items():
        if value is not None:
            ET.SubElement(properties, "property", name=_xml(key), value=_xml(value))
    failure = execution["failure"]
    if execution["status"] == "failed" and failure is not None:
        is_ours = failure["kind"] in INFRASTRUCTURE_KINDS
        tag, counter = ("error", "errors") if is_ours else ("failure", "failures")
        element = ET.SubElement(
            case, tag, type=_xml(failure["kind"]), message=_xml(failure["reason"])
        )
        element.text = _xml(
            "\n".join(
                f"{key}: {failure[key]}"
                for key in ("error_type", "message", "node")
                if failure.get(key) is not None
            )
        )
        return counter
    if execution["status"] != "succeeded":
        ET.SubElement(case, "skipped", message=_xml(execution["status"]))
        return "skipped"
    return None


def _xml(text: object) -> str:
    return _NO_XML.sub("", str(text))
