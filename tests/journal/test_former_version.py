"""A journal written by the last version before the package had folders opens with all that it knew."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import attrs
from support.journals import SCHEMA_1

from kie_async import SqliteJournal
from kie_async.journal.intents import IntentState
from kie_async.planning.durations import BINS, DurationModel

# What that version wrote, as `sqlite3 .dump` shows it; the lists of zeros are cut short.
DUMP = """
INSERT INTO intent VALUES(1,'df2851e343b085584fd15b0315b705f1','done',NULL,'sandbox/echo',X'13AD751077AFEECFCB756DB4DE45ECC689D8CCC6F4F88DDCAE6BECC1C8BEEE92',NULL,'SUCCEEDED','7ad6ae8365d64b41a86dfc18da954703',1,0,1795908089012,1795908089012,1795908089019,1795908089123,NULL,'','','{"taskId": "7ad6ae8365d64b41a86dfc18da954703", "state": "success", "resultJson": "{\\"resultObject\\": {\\"text\\": \\"\\u0436\\u0443\\u043a\\"}}", "creditsConsumed": 1.0}',1.0);
INSERT INTO intent VALUES(2,'53c522b8e11ab63f03b2e7dcd2bd88c5','running',NULL,'sandbox/echo',X'F5B5F1DC27A95C979A7A4799429FA94A8049D6A595A93D7CFFFBC53966745498',NULL,'CREATED','021db85e9bc348058c4be6dccb91c465',1,1,1795908112733,1795908112733,1795908112737,NULL,NULL,'','','',NULL);
INSERT INTO intent VALUES(3,'aac522b8e11ab63f03b2e7dcd2bd88c5','lost',NULL,'sandbox/echo',X'F5',NULL,'SENDING',NULL,1,1,1795908112740,1795908112740,NULL,NULL,NULL,'','','',NULL);
CREATE TABLE learned(
  model TEXT PRIMARY KEY,
  durations TEXT NOT NULL
) STRICT, WITHOUT ROWID;
"""  # noqa: E501

LEARNED = {
    "bins": [0.08, 0.5, 136],
    "seen": 3.94,
    "ends": [3.9] + [0.0] * (BINS - 1),
    "entries": [4.0] + [0.0] * BINS,
}


async def test_refs_ids_and_durations_of_the_former_version_are_known(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(SCHEMA_1 + DUMP)
    db.execute("INSERT INTO learned VALUES ('sandbox/echo', ?)", (json.dumps(LEARNED),))
    db.close()
    for _ in range(2):
        journal = SqliteJournal(path)
        left = await journal.open()
        assert [(intent.ref, intent.state) for intent in left] == [("lost", IntentState.UNKNOWN)]
        done, running = await journal.find_by_ref("done"), await journal.find_by_ref("running")
        assert done is not None
        assert running is not None
        assert (done.task_id, done.state, done.credits) == (
            "7ad6ae8365d64b41a86dfc18da954703",
            IntentState.SUCCEEDED,
            1.0,
        )
        assert done.fingerprint.hex().startswith("13ad751077af")
        assert "жук" in json.loads(done.record)["resultJson"]
        assert await journal.list_unsettled() == [running]
        assert (running.task_id, running.expects_callback) == ("021db85e9bc348058c4be6dccb91c465", True)
        assert attrs.astuple(await journal.load_totals()) == (3, 1, 1.0)
        learned = DurationModel.load((await journal.load_durations())["sandbox/echo"])
        assert learned is not None
        assert learned.seen == 3.94
        await journal.aclose()
