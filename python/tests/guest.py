"""For tests of real programs, which need a kernel that merges."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import sksm

EXAMPLES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "examples")
SOURCE = os.path.dirname(os.path.dirname(os.path.abspath(sksm.__file__)))
MIB = 1 << 20

#: Emulated processors on a busy machine are slow.
PATIENCE = 300

_here = sksm.support() is sksm.Support.MERGE
# Where that is known, a support() that denies it is no reason to skip everything.
_known = os.environ.get("SKSM_TEST_MERGES") == "1"
needs_merging = unittest.skipUnless(
    _here or _known, "this kernel does not merge; `cargo xtask test --only sksm-python` runs it in one that does"
)


def needs(module, package):
    there = importlib.util.find_spec(module) is not None
    return unittest.skipUnless(there, f"{module} is not on this machine: apt install {package}")


def environment():
    path = os.pathsep.join((SOURCE, EXAMPLES))
    return dict(os.environ, PYTHONPATH=path, PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1")


def example(name, directory, **changes):
    """Writes an example with other times, and tells its path."""
    with open(os.path.join(EXAMPLES, name)) as file:
        text = file.read()
    assert "20" in text, name
    path = os.path.join(directory, name)
    with open(path, "w") as file:
        file.write(text.replace("(20", "(0.5"))
    return path


class Program:
    """A program with children, whose lines are read until what one waits for has come."""

    def __init__(self, *words, cwd=None):
        self.output = tempfile.TemporaryFile("w+b")
        self.process = subprocess.Popen(
            words,
            cwd=cwd,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def said(self):
        self.output.seek(0)
        return self.output.read().decode(errors="replace")

    def wait_for(self, pattern, count):
        """The first `count` matches in what it says."""
        end = time.monotonic() + PATIENCE
        while True:
            ended = self.process.poll() is not None
            said = self.said()
            found = re.findall(pattern, said)
            if len(found) >= count:
                return found
            if ended or time.monotonic() > end:
                raise AssertionError(f"{len(found)} of {count} times {pattern!r} in:\n{said}")
            time.sleep(0.05)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.process.stdin.close()
        self.output.close()


#: The figure of what was saved, in a line of the log.
SAVED = r"sksm: merged in [0-9.]+ s: saved (\d+) KiB"


def python(*words):
    return Program(sys.executable, *words)
