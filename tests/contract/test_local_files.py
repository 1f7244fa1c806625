"""The sequential runner shows what executions left as a service does."""

import asyncio

import pytest
from store_bench import make_batch

from tests.left_behind import AFTER, LeftBehind
from wtb_core.clients import LocalClient
from wtb_core.errors import NotAFile, NotForkable
from wtb_core.sequential import LOCAL, BatchTestRunner
from wtb_core.store import acceptance, claims, endings
from wtb_core.store.records import Claimant, Finish
from wtb_core.testbench import AsyncTestBench

EXECUTION = "b-1-0"


async def leave(runner: BatchTestRunner, left: LeftBehind) -> None:
    """A batch of one execution, ended with what an attempt leaves."""
    batch = make_batch("b-1")._replace(project_version=left.version)
    claimant = Claimant("k", LOCAL, LOCAL)
    ledger, write = runner._ledger, runner._writer.write
    await write(lambda c: acceptance.accept(ledger, c, batch))
    await write(lambda c: claims.claim(ledger, c, claimant))
    finish = Finish("f", EXECUTION, 1, LOCAL, LOCAL, left.outcome())
    await write(lambda c: endings.finish(ledger, c, finish))


def test_a_local_bench_reads_and_forks(tmp_path):
    async def run():
        left = LeftBehind(tmp_path)
        runner = BatchTestRunner(tmp_path, tmp_path, [])
        bench = AsyncTestBench(LocalClient(runner), "here")
        try:
            await leave(runner, left)
            checkpoints = await bench.checkpoints(EXECUTION)
            assert [item["checkpoint_id"] for item in checkpoints][::5] == ["c-0", "c-3"]
            found = await bench.files(EXECUTION, "c-1", "c-2", diff=True)
            assert (found["execution_id"], found["attempt"]) == (EXECUTION, 1)
            assert "+    return a" in found["items"][0]["diff"]
            assert await bench.read_file(EXECUTION, "src/gcd.py") == AFTER
            with pytest.raises(NotAFile):
                await bench.read_file(EXECUTION, "src")
            with pytest.raises(NotForkable):
                await bench.fork(EXECUTION, "sub")
            receipt = await runner.fork(EXECUTION, {"checkpoint_id": "c-2"}, "k")
            again = await runner.fork(EXECUTION, {"checkpoint_id": "c-2"}, "k")
            assert (receipt.created, again.batch_id) == (True, receipt.batch_id)
            batch = await bench.batch(receipt.batch_id)
            assert batch["forked_from"] == {
                "execution_id": EXECUTION,
                "attempt": 1,
                "checkpoint_id": "c-2",
            }
            next_claim = Claimant("k2", LOCAL, LOCAL)
            assignment = await runner._writer.write(
                lambda c: claims.claim(runner._ledger, c, next_claim)
            )
            assert assignment.origin.file_commit_id == left.middle
        finally:
            await bench.close()

    asyncio.run(run())
