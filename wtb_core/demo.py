"""The demonstration: a service of its own, an example batch, what came out, and no trace left.

The service runs in a Ray cluster that is started for it and ends with it. Processes are ended by
pid, and only those that descend from the one started here.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import yaml
from rich.console import Console

from wtb_core.clients import HttpClient
from wtb_core.display import (
    clean,
    find_telling,
    follow,
    make_console,
    print_comparison,
    print_execution,
)
from wtb_core.errors import RequestRefused, Unavailable
from wtb_core.spec_files import read_spec
from wtb_core.testbench import TestBench

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 45.0
LOG_LINES = 30


def run(config: Path, spec: Path, *, keep: bool) -> int:
    """Run the demonstration; the exit code says whether every execution succeeded.

    Raises:
        Unavailable: when the service does not come up.
        InvalidSpec: when the spec cannot be used.
    """
    console = make_console()
    read_spec(spec)
    folder = Path(".wtb/demo").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    config, port = _place(config, folder, console)
    log = folder / "serve.log"
    console.print(f"starting the service on port {port}; its log is {_relative(log)}")
    with serving(config, log) as service:
        url = f"http://127.0.0.1:{port}"
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


def serve_command(config: Path) -> list[str]:
    """The command that runs the service of `config` in a Ray cluster of its own."""
    serve = shutil.which("serve", path=str(Path(sys.executable).parent)) or shutil.which("serve")
    if serve is None:
        raise Unavailable("the command `serve` of ray[serve] is not installed")
    return [serve, "run", "--address", "local", str(config)]


def _place(config: Path, folder: Path, console: Console) -> tuple[Path, int]:
    """The config to use: the given one, or a copy with a free port when its port is taken."""
    content: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    options: dict[str, Any] = content.setdefault("http_options", {})
    host, port = options.get("host", "127.0.0.1"), int(options.get("port", 8000))
    if _is_free(host, port):
        return config, port
    options["port"] = find_free_port(host)
    console.print(f"port {port} is taken; using port {options['port']} instead")
    copy = folder / "serve_config.yaml"
    copy.write_text(yaml.safe_dump(content), encoding="utf-8")
    return copy, int(options["port"])


def find_free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def serving(config: Path, log: Path) -> Generator[subprocess.Popen[bytes]]:
    """A service while the block lasts. It has a session of its own, so Ctrl-C reaches only us.

    SIGTERM and SIGHUP end the block like Ctrl-C does.
    """
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _interrupt)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with log.open("wb") as output:
        service = subprocess.Popen(  # noqa: S603 - our own command, no shell
            serve_command(config),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        yield service
    finally:
        _stop(service)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stop(service: subprocess.Popen[bytes]) -> None:
    """End the service, then whatever of its descendants is still there."""
    family = _find_family(service.pid)
    service.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_TIMEOUT_S)
    service.wait()


def _find_family(pid: int) -> list[psutil.Process]:
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
    client = HttpClient(url)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            client.request("GET", "/readyz")
        except (Unavailable, RequestRefused) as error:  # Serve answers 404 until it has deployed
            if service.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_LINES:])
                raise Unavailable(
                    f"the service did not start ({error}); {log} ends:\n{tail}"
                ) from None
            time.sleep(0.3)
        else:
            client.close()
            return


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
