"""What is asked of the kernel, and what is told of it: on any kernel, with one that takes all imitated."""

import array
import contextlib
import ctypes
import errno
import gc
import mmap
import os
import pickle
import unittest
from unittest import mock

import imitated
import sksm
import sksm.hooks
from sksm import Merged, Region, Support, _buffer, _errors, _libc, _support

PAGE = _libc.PAGE


def private(pages):
    """Private anonymous memory, written, between pages that keep it a mapping of its own."""
    room = mmap.mmap(-1, (pages + 2) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(room))
    for at in (0, pages + 1):
        _libc.mprotect(start + at * PAGE, PAGE, _libc.PROT_NONE)
    room[PAGE : (pages + 1) * PAGE] = b"7" * pages * PAGE
    return memoryview(room)[PAGE : (pages + 1) * PAGE]


def region_of(buffer):
    with _buffer.exported(buffer) as region:
        return region


class Regions(unittest.TestCase):
    def test_rounded_inward(self):
        for start, length, expected in (
            (0x1000, 0x2000, (0x1000, 0x2000)),
            (0x1001, 0x2000, (0x2000, 0x1000)),
            (0x0FFF, 0x2002, (0x1000, 0x2000)),
            (0x1001, 0x1FFE, None),
            (0x1000, 0xFFF, None),
            (0x1000, 0, None),
            (0, 0, None),
        ):
            pages = Region(start, length).inward(0x1000)
            self.assertEqual(pages, expected and Region(*expected))

    def test_in_common(self):
        here = Region(0x1000, 0x2000)
        self.assertEqual(here.within(Region(0x2000, 0x5000)), Region(0x2000, 0x1000))
        self.assertIsNone(here.within(Region(0x3000, 0x1000)))


class Buffers(unittest.TestCase):
    def test_addresses(self):
        room = (ctypes.c_char * 100)()
        self.assertEqual(region_of(room), Region(ctypes.addressof(room), 100))
        self.assertEqual(region_of(memoryview(room)[3:]), Region(ctypes.addressof(room) + 3, 97))
        data = bytes(50)
        self.assertEqual(ctypes.string_at(region_of(data).start, 50), data)
        self.assertEqual(region_of(array.array("d", [1.0] * 10)).length, 80)
        self.assertEqual(region_of(b"").length, 0)

    def test_it_cannot_move_meanwhile(self):
        data = bytearray(100)
        with _buffer.exported(data):
            with self.assertRaises(BufferError):
                data.extend(b"x" * 1000)
        data.extend(b"x")

    def test_what_is_none(self):
        with self.assertRaises(ValueError):
            sksm.merge(memoryview(bytes(100_000))[::2])
        for other in ("text", 7, None):
            with self.assertRaises(TypeError):
                sksm.merge(other)


class Asked(unittest.TestCase):
    def test_whole_pages_of_a_buffer(self):
        data = private(4)
        start = region_of(data).start
        with imitated.merging() as given:
            done = sksm.merge(data[1 : 3 * PAGE + 1])
        self.assertEqual(given, [(start + PAGE, 2 * PAGE)])
        self.assertEqual((done.advised, done.reason, done.refused), (2 * PAGE, "", ()))

    def test_small_buffers_have_no_page(self):
        with imitated.merging():
            done = sksm.merge(b"abc")
        self.assertEqual(done.advised, 0)
        self.assertIn("no whole page", str(done))

    def test_secrets_are_left_alone(self):
        locked, undumped, wiped, plain = (private(4) for _ in range(4))
        libc = ctypes.CDLL(None, use_errno=True)
        where = region_of(locked)
        if libc.mlock(ctypes.c_void_p(where.start), ctypes.c_size_t(where.length)) != 0:
            self.skipTest("this user may not lock memory; ulimit -l")
        for data, advice in ((undumped, imitated.DONTDUMP), (wiped, imitated.WIPEONFORK)):
            _libc.madvise(region_of(data).start, len(data), advice)
        secrets = [region_of(data) for data in (locked, undumped, wiped)]
        with imitated.merging() as given:
            heap = sksm.merge_heap()
            everything = sksm.merge_process(os.getpid())
            alone = [sksm.merge(data) for data in (locked, undumped, wiped)]
            self.assertEqual(sksm.merge(plain).left_alone, ())
        for start, length in given:
            for secret in secrets:
                self.assertIsNone(Region(start, length).within(secret))
        self.assertTrue(any(Region(*one).within(region_of(plain)) for one in given))
        for done, data, why in zip(alone, secrets, ("locked", "core dumps", "wiped on fork")):
            self.assertEqual((done.advised, [part.region for part in done.left_alone]), (0, [data]))
            self.assertIn(why, done.reason)
        for done in (heap, everything):
            self.assertLessEqual(set(secrets), {part.region for part in done.left_alone})
            self.assertIn("it may hold secrets", str(done))

    def test_a_secret_part_of_a_buffer(self):
        data = private(4)
        start = region_of(data).start
        _libc.madvise(start + PAGE, PAGE, imitated.DONTDUMP)
        with imitated.merging() as given:
            done = sksm.merge(data)
        self.assertEqual(given, [(start, PAGE), (start + 2 * PAGE, 2 * PAGE)])
        self.assertEqual([part.region for part in done.left_alone], [Region(start + PAGE, PAGE)])

    def test_shared_memory_says_so(self):
        shared = mmap.mmap(-1, 4 * PAGE)
        shared[:] = b"7" * 4 * PAGE
        with imitated.merging() as given:
            done = sksm.merge(shared)
        self.assertEqual((given, done.reason), ([], "shared memory never merges"))

    def test_what_was_never_written_says_so(self):
        start = _libc.mmap_anonymous(4 * PAGE)
        self.addCleanup(_libc.munmap, start, 4 * PAGE)
        with imitated.merging() as given:
            done = sksm.merge((ctypes.c_char * (4 * PAGE)).from_address(start))
            # The kernel may have joined it with a neighbour.
            self.assertTrue(done.reason or given)

    def test_small_mappings_are_left_out(self):
        with imitated.merging() as given:
            done = sksm.merge_heap(1 << 60)
        self.assertEqual((given, done.advised), ([], 0))
        self.assertIn("no private memory in mappings of", done.reason)

    def test_freezing(self):
        with imitated.merging():
            done = sksm.freeze_and_merge()
        self.addCleanup(gc.unfreeze)
        self.assertGreater(done.frozen, 100)
        self.assertGreater(done.merged.advised, 0)
        self.assertIn("objects frozen", str(done))

    def test_nothing_is_frozen_for_nothing(self):
        with mock.patch.object(_support, "_answer", Support.KSM):
            before = gc.get_freeze_count()
            with self.assertRaises(sksm.Unsupported):
                sksm.freeze_and_merge()
            self.assertEqual(gc.get_freeze_count(), before)

    def test_without_the_engine_all_say_so(self):
        calls = (
            *(lambda: sksm.merge(b"abc"), lambda: sksm.merge(b""), lambda: sksm.merge(private(4))),
            *(sksm.merge_heap, lambda: sksm.merge_heap(1 << 60), sksm.freeze_and_merge),
            *(lambda: sksm.merge_process(os.getpid()), lambda: sksm.merge_process(2**31 - 1)),
        )
        with mock.patch.object(_support, "_answer", Support.KSM):
            for call in calls:
                with self.assertRaises(sksm.Unsupported):
                    call()

    def test_without_proc_no_process_is_gone(self):
        with imitated.merging(), imitated.without_proc():
            for pid in (os.getpid(), os.getppid()):
                with self.assertRaisesRegex(sksm.Unreadable, "is /proc mounted"):
                    sksm.merge_process(pid)
            with self.assertRaises(sksm.Gone):
                sksm.merge_process(2**31 - 1)


    def test_what_was_frozen_for_nothing_is_given_back(self):
        nowhere = Merged(4 * PAGE, 0, 0, 0, 4 * PAGE, reason="in no merge domain")
        for came in (sksm.NoMemory(errno.EAGAIN, "no memory"), nowhere):
            self.assertEqual(gc.get_freeze_count(), 0)
            with imitated.merging(), mock.patch.object(sksm._freeze, "merge_heap", side_effect=[came]):
                if came is nowhere:
                    self.assertEqual(sksm.freeze_and_merge().frozen, 0)
                else:
                    with self.assertRaises(sksm.NoMemory):
                        sksm.freeze_and_merge()
            self.assertEqual(gc.get_freeze_count(), 0)

    def test_what_others_have_frozen_stays(self):
        gc.freeze()
        self.addCleanup(gc.unfreeze)
        before = gc.get_freeze_count()
        error = sksm.NoMemory(errno.EAGAIN, "no memory")
        with imitated.merging(), mock.patch.object(sksm._freeze, "merge_heap", side_effect=error):
            with self.assertRaises(sksm.NoMemory):
                sksm.freeze_and_merge()
        self.assertGreaterEqual(gc.get_freeze_count(), before)

    def test_nothing_is_frozen_where_proc_cannot_be_read(self):
        gc.freeze()
        self.addCleanup(gc.unfreeze)
        before = gc.get_freeze_count()
        with imitated.merging(), imitated.without_proc(), self.assertRaises(sksm.Unreadable):
            sksm.freeze_and_merge()
        self.assertLessEqual(gc.get_freeze_count(), before)


class Refused(unittest.TestCase):
    @contextlib.contextmanager
    def kernel(self, refuses):
        """One that refuses ranges for which this tells a number."""

        def madvise(start, length, advice):
            number = refuses(start)
            if number:
                imitated.fail(number)

        with mock.patch.object(_libc, "madvise", madvise), mock.patch.object(
            _support, "_answer", Support.MERGE
        ):
            yield

    def test_all_is_an_error(self):
        for number, error in (
            (errno.EAGAIN, sksm.NoMemory),
            (errno.EINTR, sksm.Interrupted),
            (errno.ENOMEM, sksm.Hole),
            (errno.EINVAL, sksm.Invalid),
            (errno.EIO, sksm.Error),
        ):
            with self.kernel(lambda start: number), self.assertRaises(error) as caught:
                sksm.merge(private(4))
            self.assertEqual(caught.exception.errno, number)
            self.assertEqual(caught.exception.region.length, 4 * PAGE)
            self.assertIn(str(caught.exception.region), str(caught.exception))

    def test_some_is_told(self):
        data = private(4)
        start = region_of(data).start
        with self.kernel(lambda at: errno.ENOMEM if at == start else 0):
            done = sksm.merge_heap()
        self.assertEqual([error.region for error in done.refused], [Region(start, 4 * PAGE)])
        self.assertIn("1 ranges refused", str(done))
        self.assertGreater(done.advised, 0)

    def test_errors_name_the_way_out(self):
        region = Region(0x1000, 0x2000)
        denied = _errors.of_advice(OSError(errno.EPERM, ""), region)
        self.assertIn("CAP_SYS_NICE", str(denied))
        read = _errors.of_reading(PermissionError(errno.EACCES, ""), "/proc/1/smaps")
        self.assertIn("CAP_SYS_PTRACE", str(read))
        unsupported = _errors.unsupported(Support.KSM)
        self.assertIn("CONFIG_SKSM", str(unsupported))
        # As multiprocessing hands errors on.
        for error in (denied, read, unsupported):
            again = pickle.loads(pickle.dumps(error))
            self.assertEqual((type(again), str(again), vars(again)), (type(error), str(error), vars(error)))

    def test_what_the_kernel_passed_over_is_no_success(self):
        def counts(passed):
            return sksm._counts.Counts(0, 0, 0, passed)

        with imitated.merging(), mock.patch.object(
            sksm._merge, "counts_of", side_effect=[counts(0), counts(4 * PAGE)]
        ):
            done = sksm.merge(private(4))
        self.assertIn("may be in no merge domain", str(done))

    def test_what_was_passed_over_elsewhere_is_no_failure(self):
        """The kernel counts it for the whole machine."""
        before = sksm._counts.Counts(9 * PAGE, 9 * PAGE, 9 * PAGE, 0)
        for now, nothing in (
            ((10, 9, 9), False),
            ((9, 10, 9), False),
            ((9, 9, 10), False),
            ((8, 10, 9), False),
            ((9, 9, 9), True),
            # Another thread has written meanwhile.
            ((8, 9, 9), True),
        ):
            after = sksm._counts.Counts(*(pages * PAGE for pages in (*now, 100)))
            with imitated.merging(), mock.patch.object(sksm._merge, "counts_of", side_effect=[before, after]):
                self.assertEqual(bool(sksm.merge(private(4)).reason), nothing, now)


class Hooks(unittest.TestCase):
    def test_they_tell_and_raise_nothing(self):
        said = []
        with mock.patch.object(_support, "_answer", Support.NONE):
            self.assertIsNone(sksm.hooks.merge_now(said.append))
            self.assertIsNone(sksm.hooks.merge_after(0, log=said.append))
        self.assertEqual(len(said), 2)
        for line in said:
            self.assertTrue(line.startswith("sksm: this kernel has no MADV_MERGE"), line)

    def test_the_logger_by_itself(self):
        with imitated.merging(), self.assertLogs("sksm", "INFO") as logs:
            sksm.hooks.merge_now()
        self.addCleanup(gc.unfreeze)
        self.assertIn("objects frozen", logs.output[0])

    def test_failures_are_warnings(self):
        """Without any configuration of logging these are shown, and lines of information are not."""
        denied = sksm.Denied(errno.EPERM, "not allowed")
        for error, level in ((denied, "WARNING"), (_errors.unsupported(Support.KSM), "INFO")):
            failing = mock.patch.object(sksm.hooks, "freeze_and_merge", side_effect=error)
            with failing, self.assertLogs("sksm", "INFO") as logs:
                self.assertIsNone(sksm.hooks.merge_now())
            self.assertEqual([record.levelname for record in logs.records], [level])
            self.assertEqual(logs.records[0].getMessage(), f"sksm: {error}")

    def test_a_pause_is_a_pause(self):
        for every in (0, -1, float("nan")):
            with self.assertRaises(ValueError):
                sksm.hooks.merge_after(0, every=every)

    def test_frozen_once_and_merged_again(self):
        said = []
        with imitated.merging():
            timer = sksm.hooks.merge_after(0, every=0.01, log=said.append)
            self.addCleanup(gc.unfreeze)
            while len(said) < 3 and timer.is_alive():
                timer.join(0.01)
            timer.cancel()
            timer.join(60)
        self.assertFalse(timer.is_alive())
        self.assertTrue(timer.daemon)
        self.assertEqual(["frozen" in line for line in said[:3]], [True, False, False])

    def test_cancelled_before(self):
        said = []
        with imitated.merging():
            timer = sksm.hooks.merge_after(3600, log=said.append)
            timer.cancel()
            timer.join(60)
        self.assertEqual((timer.is_alive(), said), (False, []))


class Told(unittest.TestCase):
    def test_a_line_for_logs(self):
        self.assertEqual(str(Merged(0, reason="why")), "nothing merged: why")
        done = Merged(8192, 4096, None, 0, 4096, seconds=0.0125)
        self.assertEqual(
            str(done),
            "merged in 0.013 s: saved 4 KiB, zero pages 0 KiB, ready to be shared ?, of 8 KiB of addresses; "
            "the kernel passed over 4 KiB, see sksm doctor",
        )


if __name__ == "__main__":
    unittest.main()
