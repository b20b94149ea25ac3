"""On a kernel that merges: what merges shares pages, what may hold secrets does not, and every byte is as it was."""

import ctypes
import gc
import mmap
import os
import unittest

import imitated
import sksm
from guest import MIB, needs_merging
from sksm import Region, _libc
from test_merge import private, region_of

PAGE = _libc.PAGE


def merged_bytes(region, pid="self"):
    """How much of the mappings at these addresses is merged, as smaps has it."""
    total, inside = 0, False
    with open(f"/proc/{pid}/smaps", "rb") as file:
        for line in file:
            if not line[:1].isupper():
                start, end = (int(word, 16) for word in line.split()[0].split(b"-"))
                inside = start < region.end and region.start < end
            elif inside and line.startswith(b"KSM:"):
                total += int(line.split()[1]) * 1024
    return total


class Child:
    """A forked process that does something, and waits until it is to end."""

    def __init__(self, what):
        (self.says, theirs), (mine, self.go) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.go)
            status = 1
            try:
                check = what(lambda text: os.write(theirs, text.encode() + b"\n"))
                os.write(theirs, b"ready\n")
                os.read(mine, 1)
                status = 0 if check is None or check() else 2
            finally:
                os._exit(status)
        os.close(theirs)
        os.close(mine)

    def wait(self):
        """What it says until it is ready."""
        text = b""
        while not text.endswith(b"ready\n"):
            piece = os.read(self.says, 4096)
            if not piece:
                raise AssertionError(f"it has ended after {text!r}")
            text += piece
        return text.decode().split("\n")[:-2]

    def end(self):
        # To close it is not enough: children that were forked later have it open as well.
        os.write(self.go, b"x")
        os.close(self.go)
        os.close(self.says)
        return os.waitpid(self.pid, 0)[1]


@needs_merging
class Merging(unittest.TestCase):
    def test_this_kernel_is_recognised(self):
        self.assertIs(sksm.support(), sksm.Support.MERGE)

    def test_a_buffer(self):
        data = private(64)
        done = sksm.merge(data)
        self.assertEqual((done.advised, done.reason, done.refused), (64 * PAGE, "", ()))
        # One page is published, the others are it.
        self.assertGreaterEqual(done.saved, 62 * PAGE)
        self.assertGreaterEqual(merged_bytes(region_of(data)), 64 * PAGE)
        self.assertEqual(bytes(data), b"7" * 64 * PAGE)
        data[PAGE : PAGE + 1] = b"8"
        self.assertEqual(merged_bytes(region_of(data)), 63 * PAGE)
        self.assertEqual(bytes(data), b"7" * PAGE + b"8" + b"7" * (63 * PAGE - 1))

    def test_bytes_that_cannot_be_written(self):
        data = bytes(range(256)) * (4 * MIB // 256)
        done = sksm.merge(data)
        self.assertGreater(done.saved, 3 * MIB)
        self.assertEqual(data, bytes(range(256)) * (4 * MIB // 256))

    def test_zeros(self):
        data = private(64)
        data[:] = bytes(64 * PAGE)
        done = sksm.merge(data)
        self.assertGreaterEqual(done.zeroed, 62 * PAGE)
        self.assertEqual(bytes(data), bytes(64 * PAGE))

    def test_secrets_do_not_merge(self):
        locked, undumped, wiped, plain = (private(64) for _ in range(4))
        libc = ctypes.CDLL(None)
        where = region_of(locked)
        self.assertEqual(libc.mlock(ctypes.c_void_p(where.start), ctypes.c_size_t(where.length)), 0)
        for data, advice in ((undumped, imitated.DONTDUMP), (wiped, imitated.WIPEONFORK)):
            _libc.madvise(region_of(data).start, len(data), advice)
        sksm.merge_heap()
        sksm.merge_process(os.getpid())
        for data in (locked, undumped, wiped):
            sksm.merge(data)
            self.assertEqual(merged_bytes(region_of(data)), 0)
        self.assertEqual(merged_bytes(region_of(plain)), 64 * PAGE)

    def test_in_no_domain_it_says_so(self):
        data = private(64)
        path = "/sys/kernel/mm/sksm/domain"
        with open(path) as file:
            before = file.read().split("[")[1].split("]")[0]
        with open(path, "w") as file:
            file.write("none")
        try:
            done = sksm.merge(data)
        finally:
            with open(path, "w") as file:
                file.write(before)
        self.assertIn("no merge domain", str(done))
        self.assertEqual(done.saved, 0)


@needs_merging
class Workers(unittest.TestCase):
    def test_forked_ones_share_what_each_has_built(self):
        def work(say):
            table = {number: "item %d" % number for number in range(30000)}
            done = sksm.freeze_and_merge()
            say(str(done.merged.saved))
            gc.collect()
            return lambda: all(text == "item %d" % number for number, text in table.items())

        crew = []
        saved = []
        for _ in range(3):
            crew.append(Child(work))
            saved.append(int(crew[-1].wait()[0]))
        statuses = [child.end() for child in crew]
        self.assertEqual(statuses, [0, 0, 0])
        # A dictionary of 1.3 MB, and as many strings and numbers again at least.
        for later in saved[1:]:
            self.assertGreater(later, 2 * MIB)

    def test_another_process(self):
        def work(say):
            plain, locked = private(64), private(64)
            plain[:], locked[:] = b"a" * 64 * PAGE, b"a" * 64 * PAGE
            where = region_of(locked)
            ctypes.CDLL(None).mlock(ctypes.c_void_p(where.start), ctypes.c_size_t(where.length))
            say(f"{region_of(plain).start} {where.start}")
            return lambda: bytes(plain) == bytes(locked) == b"a" * 64 * PAGE

        child = Child(work)
        plain, locked = (Region(int(start), 64 * PAGE) for start in child.wait()[0].split())
        done = sksm.merge_process(child.pid)
        self.assertEqual(done.refused, ())
        self.assertGreaterEqual(done.saved, 62 * PAGE)
        self.assertIn(locked, [part.region for part in done.left_alone])
        self.assertGreaterEqual(merged_bytes(plain, child.pid), 64 * PAGE)
        self.assertEqual(merged_bytes(locked, child.pid), 0)
        self.assertEqual(child.end(), 0)
        with self.assertRaises(sksm.Gone):
            sksm.merge_process(child.pid)

    def test_without_the_right(self):
        def work(say):
            os.setresuid(1001, 1001, 1001)
            try:
                sksm.merge_process(parent)
            except sksm.Error as error:
                say(f"{type(error).__name__}: {error}")

        parent = os.getpid()
        child = Child(work)
        said = child.wait()[0]
        self.assertEqual(child.end(), 0)
        self.assertRegex(said, "^(Denied|Unreadable): .*as root")

    def test_numbers_that_are_no_process(self):
        with self.assertRaises(sksm.NotAProcess):
            sksm.merge_process(2)


if __name__ == "__main__":
    unittest.main()
