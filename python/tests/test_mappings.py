"""What smaps and ksm_stat say is understood, and the numbers of processes."""

import os
import threading
import unittest

import sksm
from sksm import Kind, _counts, _libc, _mappings
from sksm._region import Region

SMAPS = b"""\
1000-2000 rw-p 00000000 00:00 0
Anonymous:             4 kB
VmFlags: rd wr mr mw me ac
2000-3000 ---p 00000000 00:00 0
Anonymous:             0 kB
VmFlags: mr mw me
3000-4000 rw-s 00000000 00:00 7                          /a
VmFlags: rd wr sh
4000-5000 r--p 00000000 00:00 0                          [vvar]
VmFlags: rd mr pf io de dd
6000-7000 rw-p 00000000 00:00 0
VmFlags: rd wr lo
7000-8000 rw-p 00000000 00:00 0                          [anon: x]
VmFlags: rd wr dd
8000-9000 rw-p 00000000 00:00 0                          [heap]
VmFlags: rd wr wf
9000-a000 r-xp 00001000 fd:01 12                         /usr/lib/my\r\x0b lib.so (deleted)
VmFlags: rd ex
a000-b000 rw-p 00001000 fd:01 12                         /usr/lib/Anonymous:
VmFlags: rd wr ht
b000-c000 rw-p 00000000 00:00 0                          [stack]
Anonymous:            12 kB
VmFlags: rd wr gd
"""


class Smaps(unittest.TestCase):
    def setUp(self):
        self.mappings = _mappings.parse(SMAPS)

    def test_kinds_are_told(self):
        heap, other, text, data, stack = Kind.HEAP, Kind.OTHER, Kind.TEXT, Kind.DATA, Kind.STACK
        kinds = [mapping.kind for mapping in self.mappings]
        self.assertEqual(kinds, [heap, other, other, other, heap, heap, heap, text, data, stack])

    def test_regions_pages_and_paths(self):
        first, text, last = (self.mappings[at] for at in (0, 7, -1))
        self.assertEqual((first.region, first.anonymous, first.path), (Region(0x1000, 0x1000), 4096, b""))
        self.assertEqual(text.path, b"/usr/lib/my\r\x0b lib.so (deleted)")
        self.assertEqual((last.anonymous, last.path), (12288, b"[stack]"))

    def test_what_is_left_alone(self):
        left = [(mapping.unmergeable or "").split(":")[0].split(" (")[0] for mapping in self.mappings]
        self.assertEqual(
            left,
            [
                "",
                "it cannot be accessed, or is the kernel's own",
                "shared memory never merges",
                "it cannot be accessed, or is the kernel's own",
                "locked",
                "left out of core dumps",
                "wiped on fork",
                "",
                "memory of a device, or in huge pages of hugetlbfs",
                "",
            ],
        )

    def test_nonsense_is_an_error(self):
        for bad in (b"1000", b"1000-2000 r--p 0 0 x", b"1000-2000 r--p"):
            with self.assertRaises(sksm.Unreadable):
                _mappings.parse(bad)

    def test_own_are_the_kernels(self):
        start = _libc.mmap_anonymous(4 * _libc.PAGE)
        self.addCleanup(_libc.munmap, start, 4 * _libc.PAGE)
        found = [mapping for mapping in _mappings.mappings_of("self") if mapping.region.within(Region(start, 1))]
        self.assertEqual([mapping.kind for mapping in found], [Kind.HEAP])


class Counts(unittest.TestCase):
    def test_lines_are_understood(self):
        text = (
            b"ksm_rmap_items 3\nksm_zero_pages 7\nksm_merging_pages 2\nksm_process_profit 64\nksm_merge_any: no\n"
            b"sksm_merged_pages 5\nsksm_published_pages 18446744073709551613\nsksm_process_profit -944\n"
        )
        page = _libc.PAGE
        self.assertEqual(_counts.parse(text, b"4\n"), _counts.Counts(5 * page, -3 * page, 7 * page, 4 * page))

    def test_what_is_not_there_is_none(self):
        self.assertEqual(_counts.parse(b"", b""), _counts.Counts(None, None, None, None))
        self.assertEqual(_counts.parse(b"ksm_zero_pages 2\n", b"").zeroed, 2 * _libc.PAGE)


class Numbers(unittest.TestCase):
    def test_no_process(self):
        for number in (2**31 - 1, 2**40, 0, -1):
            for look in (_mappings.check_process, _mappings.mappings_of):
                with self.assertRaises(sksm.Gone):
                    look(number)

    def test_a_thread(self):
        ids = []
        with self.assertRaisesRegex(sksm.NotAProcess, f"thread of process {os.getpid()}"):
            thread = threading.Thread(target=self.look, args=(ids,))
            thread.start()
            thread.join()
            raise ids[0]

    @staticmethod
    def look(found):
        try:
            _mappings.check_process(threading.get_native_id())
        except sksm.Error as error:
            found.append(error)

    def test_this_one(self):
        _mappings.check_process(os.getpid())
