"""The hooks as the guide has them, in real servers."""

import http.client
import json
import os
import socket
import sys
import tempfile
import unittest

import guest
from guest import SAVED, needs, needs_merging

WORKERS = 3
#: Of a table that takes some 17 MiB.
LARGE = 8 * 1024


class Client(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Server(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = scratch.name

    def start(self, *words):
        program = guest.Program(*words, cwd=self.scratch)
        self.addCleanup(program.end)
        return program

    def ask(self, number):
        client = Client(os.path.join(self.scratch, "socket"))
        client.request("GET", f"/{number}")
        answer = json.loads(client.getresponse().read())
        client.close()
        self.assertEqual(answer, {"id": number, "name": "item %d" % number})


@needs_merging
@needs("gunicorn", "gunicorn")
class Gunicorn(Server):
    def serve(self, *options):
        config = guest.example("gunicorn.conf.py", self.scratch)
        server = self.start(
            *(sys.executable, "-m", "gunicorn", "--config", config, "--bind", "unix:socket"),
            *("--workers", str(WORKERS), "--worker-tmp-dir", self.scratch, *options, "app:app"),
        )
        saved = [int(kib) for kib in server.wait_for(SAVED, WORKERS)]
        for number in range(0, 100000, 9999):
            self.ask(number)
        print(server.said(), file=sys.stderr)
        return saved

    def test_workers_share_what_each_has_loaded(self):
        saved = self.serve()
        # The first to merge has what the others share.
        self.assertGreater(sum(saved), (WORKERS - 1) * LARGE)

    def test_preloaded_and_with_threads(self):
        self.serve("--preload", "--threads", "2")


@needs_merging
@needs("uwsgidecorators", "uwsgi-plugin-python3 python3-uwsgidecorators")
class Uwsgi(Server):
    def test_workers_merge_after_the_fork(self):
        guest.example("uwsgi_app.py", self.scratch)
        server = self.start(
            *("uwsgi", "--plugin", "python3", "--http-socket", "socket", "--master", "--enable-threads"),
            *("--die-on-term", "--processes", str(WORKERS), "--need-app", "--wsgi-file", "uwsgi_app.py"),
        )
        server.wait_for("sksm: merged in", WORKERS)
        self.ask(7)
        print(server.said(), file=sys.stderr)


@needs_merging
@needs("celery", "python3-celery")
class Celery(Server):
    def test_worker_processes_merge(self):
        guest.example("celery_app.py", self.scratch)
        worker = self.start(
            *(sys.executable, "-m", "celery", "--app", "celery_app", "worker", "--loglevel", "info"),
            *("--concurrency", str(WORKERS), "--without-gossip", "--without-mingle"),
        )
        worker.wait_for("sksm: merged in", WORKERS)
        print(worker.said(), file=sys.stderr)


@needs_merging
class Multiprocessing(unittest.TestCase):
    def test_the_pool_merges_what_its_workers_load(self):
        pool = guest.python(os.path.join(guest.EXAMPLES, "pool.py"))
        self.addCleanup(pool.end)
        saved = [int(kib) for kib in pool.wait_for(SAVED, 4)]
        total = sum(len(json.dumps({"id": n, "name": "item %d" % n})) for n in range(1000))
        pool.wait_for(rf"(?m)^{total}$", 1)
        self.assertGreater(sum(saved), 3 * LARGE)
        pool.process.stdin.close()
        self.assertEqual(pool.process.wait(guest.PATIENCE), 0)
        print(pool.said(), file=sys.stderr)


if __name__ == "__main__":
    unittest.main()
