"""The searches of benchmarks/search.py in PostgreSQL with pgvector."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from benchmarks.postgres import postgres
from benchmarks.search_tasks import TOP, Result, Task, mrr, without_query

if TYPE_CHECKING:
    import numpy as np

SMALL = 64  # dimensions of the index of prefixes
DATABASE_QUERIES = 2000  # over all tasks, in equal shares, because the database answers one query at a time

logger = logging.getLogger(__name__)


def search_database(
    corpus: np.ndarray,
    queries: dict[str, np.ndarray],
    tasks: dict[str, Task],
    nearest: dict[str, list[list[int]]],
    shortlist: int,
) -> list[Result]:
    """Search with two HNSW indexes of pgvector: one of all dimensions, and one of the first 64, whose shortlist is rescored.

    Raises:
        RunError: PostgreSQL does not start, or its packages are not installed.
    """
    import psycopg
    from pgvector import HalfVector
    from pgvector.psycopg import register_vector

    width, results = corpus.shape[1], []
    share = DATABASE_QUERIES // len(tasks)
    tasks = {n: Task(t.queries[:share], t.relevant[:share], t.excluded[:share]) for n, t in tasks.items()}
    prefix = f"subvector({{}}, 1, {SMALL})::halfvec({SMALL})"
    shortlisted = (
        f"SELECT id, embedding FROM sentences ORDER BY {prefix.format('embedding')} <=> "
        f"{prefix.format(f'%(query)s::halfvec({width})')} LIMIT {shortlist}"
    )
    ways = {
        width: ("embedding halfvec_cosine_ops", "sentences"),
        SMALL: (f"({prefix.format('embedding')}) halfvec_cosine_ops", f"({shortlisted}) AS shortlist"),
    }
    with (
        postgres("shared_buffers=1GB", "maintenance_work_mem=1GB") as address,
        psycopg.connect(address, autocommit=True) as connection,
    ):
        connection.execute("CREATE EXTENSION vector")
        register_vector(connection)
        connection.execute(f"CREATE TABLE sentences (id bigint PRIMARY KEY, embedding halfvec({width}) NOT NULL)")
        with connection.cursor().copy("COPY sentences FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["bigint", "halfvec"])
            for row in enumerate(map(HalfVector, corpus)):
                copy.write_row(row)
        for dim, (column, table) in ways.items():
            start = time.perf_counter()
            connection.execute(f"CREATE INDEX hnsw ON sentences USING hnsw ({column})")
            connection.execute("ANALYZE sentences")
            logger.info("pgvector, %d dimensions: built in %.0f s", dim, time.perf_counter() - start)
            connection.execute(f"SET hnsw.ef_search = {shortlist}")
            query = f"SELECT id FROM {table} ORDER BY embedding <=> %(query)s LIMIT {TOP + 1}"
            scores, shared, seconds = {}, [], 0.0
            for name, task in tasks.items():
                vectors = [HalfVector(vector) for vector in queries[name][: len(task.queries)]]
                start = time.perf_counter()
                rows = [[i for (i,) in connection.execute(query, {"query": vector})] for vector in vectors]
                seconds += time.perf_counter() - start
                answers = without_query(rows, task)
                scores[name] = mrr(answers, task)
                shared += [len(set(a) & set(b)) / TOP for a, b in zip(answers, nearest[name], strict=False)]
            [(size,)] = connection.execute("SELECT pg_relation_size('hnsw')").fetchall()
            count = sum(len(task.queries) for task in tasks.values())
            agreement = sum(shared) / len(shared)
            results.append(Result(dim, "pgvector", dim == SMALL, size / 2**20, count / seconds, scores, agreement))
            connection.execute("DROP INDEX hnsw")
    return results
