"""Hostile probes: what user code must not be able to do, tried from where user code runs.

`run` is called in the execution. Its findings say what is to be seen from inside; `verify` is
called outside, with what `look` saw before, and has the last word. Only the standard library is
used, as this runs beside user code.
"""

from wtb_core.sandbox.probes import files, limits, mounts, network, privileges, processes
from wtb_core.sandbox.probes.findings import PROBES, Finding, Probe, Surroundings
from wtb_core.sandbox.probes.outside import Outside, look, put_marks, targets, verify
from wtb_core.sandbox.probes.running import run, select_probes

__all__ = [
    "PROBES",
    "Finding",
    "Outside",
    "Probe",
    "Surroundings",
    "files",
    "limits",
    "look",
    "mounts",
    "network",
    "privileges",
    "processes",
    "put_marks",
    "run",
    "select_probes",
    "targets",
    "verify",
]
