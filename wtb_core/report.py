"""What a batch's events add up to: its status, its counts, and the comparison of its variants.

A fold keeps sums only, so its size is that of the variants, never that of the batch. Feeding an
event again changes nothing, because events are numbered: what is not the next `seq` is skipped.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from wtb_core.states import INFRASTRUCTURE_KINDS


def overall_score(
    scores: Mapping[str, float | None], rules: Mapping[str, Mapping[str, Any]]
) -> float | None:
    """The weighted mean of the weighted metrics, or the only metric there is, else null.

    A metric counts against the variant when lower is better: its value enters negated.
    """
    weighted = {name: rule for name, rule in rules.items() if rule.get("weight") is not None}
    if not weighted:
        return next(iter(scores.values())) if len(scores) == 1 else None
    total = Fraction(0)
    weights = Fraction(0)
    for name, rule in weighted.items():
        value = scores.get(name)
        if value is None:
            return None
        weight = Fraction(rule["weight"])
        total += weight * Fraction(value if rule.get("higher_is_better", True) else -value)
        weights += weight
    return float(total / weights)


@dataclass
class _Mean:
    """An exact sum, so that a mean does not depend on the order of events."""

    total: Fraction = Fraction(0)
    n: int = 0

    def add(self, value: float) -> None:
        self.total += Fraction(value)
        self.n += 1


@dataclass
class _VariantFold:
    n: int = 0
    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter[str])
    cancelled: int = 0
    reused: int = 0
    scores: dict[str, _Mean] = field(default_factory=dict[str, _Mean])
    overall: _Mean = field(default_factory=_Mean)
    duration: _Mean = field(default_factory=_Mean)

    @property
    def own_failures(self) -> int:
        return sum(n for kind, n in self.failed.items() if kind not in INFRASTRUCTURE_KINDS)


class BatchFold:
    """The state of one batch, made from its events in order."""

    def __init__(self) -> None:
        self.seq = 0
        self.status = "pending"
        self.started: dict[str, Any] = {}
        self.ended: dict[str, Any] | None = None
        self.total = 0
        self.succeeded = 0
        self.failed = 0
        self.cancelled = 0
        self.files_tracked = 0
        self._running: set[str] = set()
        self._variants: dict[str, _VariantFold] = {}

    def feed(self, event: Mapping[str, Any]) -> None:
        """Take the next event; one that was taken before is skipped.

        Raises:
            ValueError: when an event is missing before this one.
        """
        seq = int(event["seq"])
        if seq <= self.seq:
            return
        if seq != self.seq + 1:
            raise ValueError(f"event {self.seq + 1} is missing: got {seq} after {self.seq}")
        self.seq = seq
        kind = str(event["type"])
        payload: dict[str, Any] = event["payload"]
        if kind == "ray_batch_test_started":
            self.status = "running"
            self.started = payload
            self.total = payload["executions"]
            known, self._variants = self._variants, {}  # executions cancelled one by one before
            for name in payload["variants"]:
                self._variants[name] = known.get(name, _VariantFold())
        elif kind.startswith("ray_variant_execution_"):
            self._feed_execution(kind.removeprefix("ray_variant_execution_"), payload)
        elif kind in {
            "ray_batch_test_completed",
            "ray_batch_test_failed",
            "ray_batch_test_cancelled",
        }:
            self.status = kind.removeprefix("ray_batch_test_")
            self.ended = payload
            self.total = payload["counts"]["total"]

    @property
    def counts(self) -> dict[str, int]:
        """Executions by status, as `GET /v1/batches/{id}` says them."""
        ended = self.succeeded + self.failed + self.cancelled
        total = max(self.total, ended)  # a batch cancelled before it started has not said its size
        return {
            "pending": total - len(self._running) - ended,
            "running": len(self._running),
            "succeeded": self.succeeded,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "total": total,
        }

    def comparison(self) -> dict[str, Any]:
        """Per variant: n, succeeded, failed by kind, each score's mean and its n.

        A variant's own failures enter a mean with the metric's `failure_score`; failures of the
        infrastructure and cancelled executions do not enter at all.
        """
        rules: Mapping[str, Mapping[str, Any]] = self.started.get("scores", {})
        metrics = self._metrics(rules)
        variants = [_compare(name, fold, metrics, rules) for name, fold in self._variants.items()]
        best = _best(variants, rules)
        return {
            "baseline": self.started.get("baseline"),
            "metrics": metrics,
            "best_variant": best["variant"] if best else None,
            "best_score": best["overall_score"]["mean"] if best else None,
            "variants": variants,
        }

    def _metrics(self, rules: Mapping[str, Any]) -> list[str]:
        """Every metric there is; an evaluator that has given none yet counts as one."""
        found = {name for fold in self._variants.values() for name in fold.scores} | set(rules)
        for evaluator in self.started.get("evaluators", []):
            if not any(name.startswith(f"{evaluator}.") for name in found):
                found.add(evaluator)
        return sorted(found)

    def _feed_execution(self, what: str, payload: dict[str, Any]) -> None:
        execution = payload["execution_id"]
        if what == "started":
            self._running.add(execution)
            return
        self._running.discard(execution)
        fold = self._variants.setdefault(payload["variant"], _VariantFold())
        if what == "failed" and payload["will_retry"]:
            return
        fold.n += 1
        if what == "cancelled":
            self.cancelled += 1
            fold.cancelled += 1
        elif what == "failed":
            self.failed += 1
            fold.failed[payload["kind"]] += 1
        else:
            self.succeeded += 1
            self.files_tracked += payload.get("files_tracked", 0)
            fold.succeeded += 1
            fold.reused += payload.get("reused_from") is not None
            fold.duration.add(payload["duration_ms"])
            for name, value in payload["scores"].items():
                mean = fold.scores.setdefault(name, _Mean())
                if value is not None:
                    mean.add(value)
            if payload["overall_score"] is not None:
                fold.overall.add(payload["overall_score"])


def _compare(
    name: str,
    fold: _VariantFold,
    metrics: list[str],
    rules: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    failures = fold.own_failures
    failure_scores = {m: float(rules.get(m, {}).get("failure_score", 0.0)) for m in metrics}
    scores = {
        metric: _with_failures(fold.scores.get(metric, _Mean()), failures, failure_scores[metric])
        for metric in metrics
    }
    overall_failure = overall_score(failure_scores, rules)
    overall = (
        {"mean": None, "n": 0}
        if overall_failure is None
        else _with_failures(fold.overall, failures, overall_failure)
    )
    duration = fold.duration
    return {
        "variant": name,
        "n": fold.n,
        "succeeded": fold.succeeded,
        "failed": dict(sorted(fold.failed.items())),
        "cancelled": fold.cancelled,
        "reused": fold.reused,
        "scores": scores,
        "overall_score": overall,
        "mean_duration_ms": round(duration.total / duration.n) if duration.n else None,
    }


def _with_failures(mean: _Mean, failures: int, failure_score: float) -> dict[str, Any]:
    n = mean.n + failures
    if n == 0:
        return {"mean": None, "n": 0}
    return {"mean": float((mean.total + failures * Fraction(failure_score)) / n), "n": n}


def _best(
    variants: list[dict[str, Any]], rules: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The best mean; the earlier variant where two are equal.

    A weighted score is higher for the better variant; a lone metric keeps its own direction.
    """
    scored = [variant for variant in variants if variant["overall_score"]["mean"] is not None]
    weighted = any(rule.get("weight") is not None for rule in rules.values())
    lower = not weighted and not all(rule.get("higher_is_better", True) for rule in rules.values())
    choose = min if lower else max
    return choose(scored, key=lambda variant: variant["overall_score"]["mean"], default=None)


def has_succeeded(batch: Mapping[str, Any]) -> bool:
    """Whether a batch completed and every execution succeeded; scores do not matter."""
    counts = batch["counts"]
    return batch["status"] == "completed" and counts["succeeded"] == counts["total"]


def render_markdown(comparison: Mapping[str, Any]) -> str:
    """A comparison as a Markdown table."""
    metrics: list[str] = comparison["metrics"]
    heads = ["variant", "n", "succeeded", "failed", *metrics, "overall"]
    lines = [_markdown_row(heads), "|" + " --- |" * len(heads)]
    for row in comparison["variants"]:
        failed = ", ".join(f"{kind} {n}" for kind, n in row["failed"].items()) or "0"
        means = [format_mean(row["scores"][metric]) for metric in metrics]
        cells = [row["variant"], str(row["n"]), str(row["succeeded"]), failed, *means]
        cells.append(format_mean(row["overall_score"]))
        lines.append(_markdown_row(cells))
    return "\n".join(lines) + "\n"


def render_csv(comparison: Mapping[str, Any]) -> str:
    """A comparison as CSV: one row a variant, for each metric its mean and its n."""
    out = io.StringIO()
    writer = csv.writer(out)
    metrics = comparison["metrics"]
    heads = [head for metric in metrics for head in (metric, f"{metric}.n")]
    writer.writerow(
        ["variant", "n", "succeeded", "failed", "cancelled", *heads, "overall_score", "overall.n"]
    )
    for row in comparison["variants"]:
        scores = [v for m in metrics for v in (row["scores"][m]["mean"], row["scores"][m]["n"])]
        overall = row["overall_score"]
        failed = sum(row["failed"].values())
        counts = [row["variant"], row["n"], row["succeeded"], failed, row["cancelled"]]
        writer.writerow([*counts, *scores, overall["mean"], overall["n"]])
    return out.getvalue()


def _markdown_row(cells: list[str]) -> str:
    """Metrics are named by user code: a bar or a line's end must not end the cell."""
    plain = [" ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(plain) + " |"


def format_mean(mean: Mapping[str, Any]) -> str:
    """`0.867 (n 15)`, or a dash where there is nothing to average."""
    return "-" if mean["mean"] is None else f"{mean['mean']:.3f} (n {mean['n']})"
