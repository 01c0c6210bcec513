"""The benchmark of a shared journal measures something: a short form of ``python -m benchmarks cluster``."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.postgres import OwnPostgres

from benchmarks import cluster


@pytest.mark.timeout(120)
async def test_what_a_shared_journal_adds_is_measured(own_postgres: OwnPostgres, tmp_path: Path) -> None:
    server = own_postgres()
    plain, middle, high, *_ = await cluster.added_to_a_create(server, tmp_path, 1, 4)
    assert plain.median > 0
    assert 0 < middle.median <= high.median + plain.median
    assert [middle.at_most, high.at_most] == [5.0, 25.0]
    to_its_own, *added = await cluster.added_to_a_callback(server, 20, 20.0)
    assert to_its_own.median > 0
    assert [figure.at_most for figure in added] == [10.0, 50.0]
    assert all(len(figure.values) == 4 for figure in (to_its_own, *added))
