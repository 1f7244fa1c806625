"""The demonstration: a service of its own, an example batch, what came out, and no trace left.

The service runs in a Ray cluster that is started for it and ends with it. Processes are ended by
pid, and only those that descend from the one started here.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from types import FrameType

import psutil
from rich.console import Console

from wtb_core.display import (
    clean,
    find_telling,
    follow,
    make_console,
    print_comparison,
    print_execution,
)
from wtb_core.doctor import ask_service
from wtb_core.errors import Unavailable
from wtb_core.serving import ServeConfig, find_free_port, is_free, serve_command
from wtb_core.spec_files import read_spec
from wtb_core.testbench import TestBench

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 45.0
LOG_LINES = 30


def run(config: ServeConfig, spec: Path, *, keep: bool) -> int:
    """Run the demonstration; the exit code says whether every execution succeeded.

    Raises:
        Unavailable: when the service does not come up.
        InvalidSpec: when the spec cannot be used.
    """
    console = make_console()
    read_spec(spec)
    folder = Path(".wtb/demo").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config = _place(config, console)
    log = folder / "serve.log"
    console.print(f"starting the service on port {config.port}; its log is {_relative(log)}")
    with serving(config.write(folder), log) as service:
        url = config.url
        started = time.monotonic()
        wait_until_ready(url, service, log)
        console.print(f"ready after {time.monotonic() - started:.0f} s: {url}")
        succeeded = _show_batch(url, spec, console)
        if keep:
            console.print("the service stays up; stop it with Ctrl-C")
            with contextlib.suppress(KeyboardInterrupt):
                service.wait()
        console.print("stopping the service")
    return 0 if succeeded else 1


def _place(config: ServeConfig, console: Console) -> ServeConfig:
    """The config to use: the given one, or one with a free port when its port is taken."""
    if is_free(config.host, config.port):
        return config
    port = find_free_port(config.host)
    console.print(f"port {config.port} is taken; using port {port} instead")
    return config.change(port=port)


@contextlib.contextmanager
def serving(config: Path, log: Path) -> Generator[subprocess.Popen[bytes]]:
    """A service while the block lasts. It has a session of its own, so Ctrl-C reaches only us.

    SIGTERM and SIGHUP end the block like Ctrl-C does.
    """
    end_on_signals()
    service = launch(config, log)
    try:
        yield service
    finally:
        stop(service)


def launch(
    config: Path, log: Path, more: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the service of `config`, in a session of its own; what it says goes to `log`.

    Its environment is ours, with `more` over it.
    """
    inherited = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as output:
        return subprocess.Popen(  # noqa: S603 - our own command, no shell
            serve_command(config),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, **(more or {}), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process like Ctrl-C does."""
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def stop(service: subprocess.Popen[bytes]) -> None:
    """End the service, then whatever of its descendants is still there."""
    family = find_family(service.pid)
    service.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
    service.wait()


def find_family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it, none when it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def wait_until_ready(url: str, service: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the service can run batches.

    Raises:
        Unavailable: when it ended or the time is over; with the last lines of its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while problem := _find_obstacle(url):
        if service.poll() is not None or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
            raise Unavailable(f"the service did not start ({problem}); {log} ends:\n{tail}")
        time.sleep(0.3)


def _find_obstacle(url: str) -> str | None:
    try:
        state = ask_service(url)
    except Unavailable as error:
        return error.what
    return None if state["ready"] else "; ".join(state["problems"])


def _show_batch(url: str, spec: Path, console: Console) -> bool:
    with TestBench.connect(url) as bench:
        batch_id = bench.submit(spec)
        console.print(f"submitted {spec} as {batch_id}")
        try:
            total = bench.batch(batch_id)["counts"]["total"]
            for _ in follow(bench.events(batch_id), total, console):
                pass
        except KeyboardInterrupt:
            bench.cancel(batch_id, "the demonstration was interrupted")
            raise
        result = bench.read(batch_id)
        console.print()
        print_comparison(result.comparison, console)
        console.print("\nThe most telling executions: best scores that few variants reached")
        for execution in find_telling(result.executions):
            print_execution(execution, console)
        console.print("\nWhere to look while the service runs (`make demo KEEP=1`):")
        for path in ("", "/executions", "/comparison?format=md", "/events"):
            console.print(f"  {url}/v1/batches/{clean(batch_id)}{path}")
    return result.succeeded


def _relative(path: Path) -> str:
    return os.path.relpath(path)
