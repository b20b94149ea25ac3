"""The number of MADV_MERGE is not believed: where it means something else, no data is lost."""

import ctypes
import errno
import os
import unittest
from unittest import mock

import imitated
import sksm
from sksm import Support, _handshake, _libc, _support
from sksm._handshake import MADV_MERGE, Named, Probe


def asked():
    """What support() says of the kernel, and that it destroys nothing however one asks for a merge."""
    data = bytearray(b"7" * 100_000)
    answer = sksm.support()
    for merge in (lambda: sksm.merge(data), sksm.merge_heap, lambda: sksm.merge_process(os.getpid())):
        try:
            merge()
        except sksm.Unsupported as error:
            assert answer is not Support.MERGE and error.instead is answer
        except sksm.Undecided:
            assert answer is not Support.MERGE and _support._answer is None
        else:
            assert answer is Support.MERGE
    assert data == b"7" * 100_000, "data was lost"
    child = os.fork()
    if child == 0:
        os._exit(0 if data == b"7" * 100_000 and sksm.support() is answer else 1)
    assert os.waitpid(child, 0)[1] == 0, "a child's data was lost"
    return answer


class OtherKernels(unittest.TestCase):
    def test_what_keeps_a_page_may_be_the_engine(self):
        for sysfs in (MADV_MERGE, "named", "hidden"):
            with imitated.kernel(imitated.keep, sysfs):
                self.assertIs(asked(), Support.MERGE, sysfs)

    def test_the_engines_own_number_is_believed(self):
        """No page is tried, which there may be no memory for."""
        no_page = mock.patch.object(_handshake, "Probe", side_effect=AssertionError)
        with imitated.kernel(imitated.keep, MADV_MERGE), no_page:
            self.assertIs(sksm.support(), Support.MERGE)
        for other in (25, -1):
            with imitated.kernel(imitated.keep, other):
                self.assertIsNot(asked(), Support.MERGE, other)
        with imitated.kernel(imitated.keep, "named"), no_page, self.assertRaises(AssertionError):
            sksm.support()

    def test_other_advices_of_the_number_destroy_nothing(self):
        """Where 26 is DONTNEED, what Python holds would become zeros."""
        others = {
            name: imitated.advice(getattr(imitated, name))
            for name in ("DONTNEED", "REMOVE", "DONTFORK", "DONTDUMP", "WIPEONFORK")
        }
        others["a guard"] = imitated.guard
        for name, number in others.items():
            for sysfs in (25, "named", "other", "uncounted", "hidden"):
                with self.subTest(advice=name, sysfs=sysfs), imitated.kernel(number, sysfs):
                    self.assertIsNot(asked(), Support.MERGE)

    def test_lazy_frees_show_where_nothing_names_the_engine(self):
        for sysfs in ("other", "uncounted", "hidden"):
            with imitated.kernel(imitated.advice(imitated.FREE), sysfs):
                self.assertIsNot(asked(), Support.MERGE, sysfs)

    def test_a_kernel_that_shows_no_engine_has_none(self):
        with imitated.kernel(imitated.keep, "other"):
            self.assertIsNot(asked(), Support.MERGE)

    def test_a_proc_without_counts_of_ksm_is_that_of_a_kernel_without_the_engine(self):
        """It is not as where nothing can be seen: an advice that keeps the page may be another one."""
        with imitated.kernel(imitated.keep, "uncounted"):
            self.assertIs(_handshake._named(), Named.ABSENT)
            self.assertIsNot(asked(), Support.MERGE)
        with imitated.kernel(imitated.keep, "hidden"):
            self.assertIs(_handshake._named(), Named.UNSEEN)

    def test_what_is_refused_is_not_there(self):
        for number in (errno.EPERM, errno.EAGAIN):
            with imitated.kernel(imitated.refuse(number), "named"):
                self.assertIsNot(asked(), Support.MERGE)

    def test_what_could_not_be_found_out_is_asked_again(self):
        with imitated.kernel(imitated.refuse(errno.EAGAIN), "named"):
            self.assertIsNot(sksm.support(), Support.MERGE)
            self.assertIsNone(_support._answer)
            with self.assertRaises(sksm.Undecided):
                sksm.merge_heap()
        with imitated.kernel(imitated.refuse(errno.EINVAL), "named"):
            answer = sksm.support()
            self.assertIs(_support._answer, answer)
            with self.assertRaises(sksm.Unsupported):
                sksm.merge_heap()

    def test_what_a_filter_refuses_is_undecided(self):
        """It has answered, and not the kernel."""
        refusing = imitated.refuse(errno.EPERM)
        for number, sysfs in (
            (refusing, "named"),
            (refusing, "hidden"),
            (errno.EPERM, MADV_MERGE),
            (errno.EPERM, "named"),
            (errno.ENOSYS, "hidden"),
        ):
            with self.subTest(sysfs=sysfs), imitated.kernel(number, sysfs):
                with self.assertRaisesRegex(sksm.Undecided, "seccomp filter") as raised:
                    sksm.merge_heap()
                self.assertIn(raised.exception.errno, (errno.EPERM, errno.ENOSYS))
        for number, sysfs in ((errno.EPERM, 25), (errno.EPERM, "other"), (errno.EINVAL, "hidden")):
            with self.subTest(sysfs=sysfs), imitated.kernel(number, sysfs):
                with self.assertRaises(sksm.Unsupported):
                    sksm.merge_heap()


class EmulatedKernels(unittest.TestCase):
    def test_one_that_takes_any_advice_knows_none(self):
        """QEMU's user mode and gVisor do so for empty ranges."""
        take_all = mock.patch.object(_libc, "madvise", lambda start, length, advice: None)
        with take_all, mock.patch.object(_support, "_answer", None):
            self.assertIs(sksm.support(), Support.NONE)


    def test_a_mapping_that_is_said_to_have_grown_elsewhere_has_not_grown(self):
        probe = Probe()
        self.addCleanup(probe.unmap)
        for where in (None, 7, probe.page):
            with mock.patch.object(_libc._c, "mremap", lambda *_: where):
                self.assertFalse(probe.is_one_mapping(), where)
        self.assertTrue(probe.is_one_mapping())


class Answers(unittest.TestCase):
    def test_the_kind_of_a_file_system_is_the_first_field_on_all_machines(self):
        kind, block = 0x62656572, 4096
        for machine, order, size in (
            ("x86_64", "little", ctypes.sizeof(ctypes.c_long)),
            ("ppc64", "big", ctypes.sizeof(ctypes.c_long)),
            ("s390x", "big", 4),
        ):
            room = kind.to_bytes(size, order) + block.to_bytes(size, order) + bytes(64)
            self.assertEqual(_libc.first_of_statfs(room, machine, order), kind, machine)


class ThisKernel(unittest.TestCase):
    def test_it_is_what_sysfs_says(self):
        there = os.path.exists("/sys/kernel/mm/sksm")
        self.assertEqual(sksm.support() is Support.MERGE, there)

    def test_the_probe_tells_a_page_that_has_changed(self):
        probe = Probe()
        self.addCleanup(probe.unmap)
        self.assertTrue(probe.is_one_mapping())
        self.assertIs(probe.has_its_bytes(), True)
        _libc.madvise(probe.page, _libc.PAGE, imitated.DONTNEED)
        self.assertIs(probe.has_its_bytes(), False)
        _libc.mprotect(probe.page, _libc.PAGE, _libc.PROT_NONE)
        self.assertIs(probe.has_its_bytes(), False)
        self.assertFalse(probe.is_one_mapping())

    def test_the_page_is_that_of_the_library_for_rust(self):
        """`(at as u8).wrapping_mul(31) ^ (at >> 8) as u8 | 1`, by hand at some places."""
        page = _handshake.pattern(4096)
        self.assertEqual([page[at] for at in (0, 1, 2, 9, 256, 4095)], [1, 31, 63, 23, 1, 0xEF])
        self.assertNotIn(0, page)
