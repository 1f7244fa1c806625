"""The service that a chaos run starts as a user does, kills, and starts again as systemd would."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import yaml

from benchmarks.chaos_records import Records
from benchmarks.services import (
    ROLES,
    find_mounts,
    find_role,
    find_sandboxed,
    list_leftovers,
    split_sandboxed,
    write_config,
)
from wtb_core.demo import find_family, launch, stop, wait_until_ready
from wtb_core.errors import Unavailable
from wtb_core.serving import find_free_port

PROJECT = Path(__file__).parents[1] / "tests" / "projects" / "journal" / "project.yaml"
EXECUTOR = {"min_replicas": 2, "max_replicas": 2, "slots": 4, "max_queued": 8, "num_cpus": 0.2}
DIRECTORIES = ("runs", "zygotes", "owners", "gone")
"""Of the data directory those that hold only what runs."""
DEPLOY_TIMEOUT_S = 60.0
LEFT_TIMEOUT_S = 90.0
DEATH_TIMEOUT_S = 10.0
MAX_STARTS = 5
"""Ray gives up when a start takes it more than 30 s; a slow machine needs several."""


class Killed(NamedTuple):
    """When what was killed; `at` is in seconds since the epoch."""

    at: float
    pids: list[int]


class Service:
    """A service in `folder`, with its Ray's files there too; sockets' paths must not be long.

    What it starts is found again by ancestry and ended by pid. Ray asks for a token at its
    dashboard unless both sides say that they want none.
    """

    def __init__(self, folder: Path, records: Records) -> None:
        self.folder = folder
        self.data = folder / ".wtb"
        self.records = records
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.number = 0
        self.ready_at = 0.0
        """On the monotonic clock."""
        self.deploys = 0
        self._config = write_config(folder, self.port, [str(PROJECT)], executor=EXECUTOR)
        self._service: subprocess.Popen[bytes] | None = None
        self._suspects: list[psutil.Process] = []
        self._environment = {"RAY_AUTH_MODE": "disabled"}
        for name, variable in (("ray", "RAY_TMPDIR"), ("tmp", "TMPDIR")):
            (folder / name).mkdir()
            self._environment[variable] = str(folder / name)

    def start(self) -> None:
        """Start it and wait until it is ready; again when it ends before, as systemd would.

        Raises:
            Unavailable: when it does not come up.
        """
        for turn in range(MAX_STARTS):
            try:
                self._start()
                return
            except Unavailable:
                if not self.has_died() or turn + 1 == MAX_STARTS:
                    raise
                self.records.add_now("services", what="did not start", number=self.number)
                self.stop()

    def _start(self) -> None:
        self.number += 1
        log = self.folder / f"service-{self.number}.log"
        started_at = time.monotonic()
        self._service = launch(self._config, log, self._environment)
        wait_until_ready(self.url, self._service, log)
        self.ready_at = time.monotonic()
        took_s = round(self.ready_at - started_at, 1)
        self.records.add_now("services", what="ready", number=self.number, took_s=took_s)

    def stop(self) -> None:
        """Stop it as systemd would: SIGTERM, and in the end SIGKILL."""
        if self._service is not None:
            self._suspects += self._find_all()
            stop(self._service)
            self.records.add_now("services", what="stopped", number=self.number)
            self._service = None

    def kill_all(self) -> list[int]:
        """Kill -9 the service with its Ray and everything below; the pids."""
        assert self._service is not None
        family = find_family(self._service.pid)
        self._suspects += find_sandboxed(self.folder)  # these must die of it
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=DEATH_TIMEOUT_S)
        self._service.wait()
        self.records.add_now("services", what="killed", number=self.number)
        self._service = None
        return [process.pid for process in family]

    def has_died(self) -> bool:
        """Whether it ended although nobody stopped it."""
        return self._service is not None and self._service.poll() is not None

    def kill(self, kind: str, pick: float) -> Killed:
        """Kill -9 one process of a kind, if there is one now."""
        victims = self.find(kind)
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            victim = victims[int(pick * len(victims))]
            at = time.time()
            victim.kill()
            return Killed(at, [victim.pid])
        return Killed(time.time(), [])

    def find(self, kind: str) -> list[psutil.Process]:
        """The processes of a kind that run now."""
        if self._service is None:
            return []
        if kind in ROLES:
            return find_role(self._service.pid, kind)
        nurseries, children = split_sandboxed(self.folder)
        return children if kind == "child" else nurseries

    def deploy(self) -> str:
        """Deploy the config with other args while it runs; what went wrong, else nothing."""
        self.deploys += 1
        changed = yaml.safe_load(self._config.read_text())
        slots = EXECUTOR["slots"] - self.deploys % 2
        changed["applications"][0]["args"]["executor"] = {**EXECUTOR, "slots": slots}
        self._config.write_text(yaml.safe_dump(changed))
        dashboard = self._find_dashboard()
        if dashboard is None:
            return "no dashboard answers"
        command = [str(Path(sys.executable).with_name("serve")), "deploy", "-a", dashboard]
        try:
            done = subprocess.run(
                [*command, str(self._config)],
                capture_output=True,
                text=True,
                timeout=DEPLOY_TIMEOUT_S,
                env={**os.environ, **self._environment},
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"serve deploy took more than {DEPLOY_TIMEOUT_S:.0f} s"
        return done.stderr.strip().splitlines()[-1] if done.returncode else ""

    def find_left(self) -> list[str]:
        """What is still there of what was stopped or killed: processes, mounts, directories."""
        _, alive = psutil.wait_procs(self._suspects, timeout=DEATH_TIMEOUT_S)
        left = [f"process {process.pid} is alive" for process in alive if not _is_dead(process)]
        left += [f"process {process.pid} is alive" for process in find_sandboxed(self.folder)]
        left += [f"mount: {line}" for line in find_mounts(self.folder)]
        for name in DIRECTORIES:
            left += [f"{name}/{path.name}" for path in (self.data / name).glob("*")]
        left += [f"tmp/{path.name}" for path in (self.folder / "tmp").glob("wtb-*")]  # not Ray's
        return left

    async def settle(self) -> list[str]:
        """Wait until the service has removed what killed processes left; what it has not."""
        deadline = time.monotonic() + LEFT_TIMEOUT_S
        while left := await asyncio.to_thread(list_leftovers, self.data):
            if time.monotonic() > deadline:
                return left
            await asyncio.sleep(1.0)
        return []

    def _find_all(self) -> list[psutil.Process]:
        assert self._service is not None
        return [*find_family(self._service.pid), *find_sandboxed(self.folder)]

    def _find_dashboard(self) -> str | None:
        assert self._service is not None
        for process in find_family(self._service.pid):
            with contextlib.suppress(psutil.Error, httpx.HTTPError):
                if any(part.endswith("/dashboard.py") for part in process.cmdline()):
                    for connection in process.net_connections("tcp"):
                        url = f"http://127.0.0.1:{connection.laddr.port}"
                        if connection.status == psutil.CONN_LISTEN and _is_dashboard(url):
                            return url
        return None


def _is_dead(process: psutil.Process) -> bool:
    """Whether it is gone, or waits for its parent to hear that it is."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is_dashboard(url: str) -> bool:
    try:
        answer = httpx.get(f"{url}/api/ray/version", timeout=5, trust_env=False)
        return "ray_version" in answer.json()
    except (httpx.HTTPError, ValueError):
        return False
