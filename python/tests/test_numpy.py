"""Arrays of numpy, by the buffer protocol."""

import os
import sys
import unittest

import guest
import sksm
from guest import MIB, needs, needs_merging
from test_merge import region_of


@needs("numpy", "python3-numpy")
class Addresses(unittest.TestCase):
    def test_any_order_without_gaps(self):
        import numpy

        table = numpy.arange(1 << 20, dtype="int32").reshape(1024, 1024)
        start = table.__array_interface__["data"][0]
        readonly = table.view()
        readonly.flags.writeable = False
        for array in (table, table.T, readonly, table.view("float32")):
            self.assertEqual(region_of(array), sksm.Region(start, 4 * MIB))
        self.assertEqual(region_of(table[512:]).start, start + 2 * MIB)

    def test_with_gaps_it_is_refused(self):
        import numpy

        for array in (numpy.zeros((1024, 1024))[:, ::2], numpy.zeros(1 << 20)[::-1]):
            with self.assertRaisesRegex(ValueError, "not contiguous"):
                sksm.merge(array)


@needs_merging
@needs("numpy", "python3-numpy")
class Arrays(unittest.TestCase):
    def test_processes_that_were_started_apart_share_them(self):
        """Arrays hold no addresses, so they are equal wherever they lie."""
        program = os.path.join(guest.EXAMPLES, "arrays.py")
        first = guest.python(program)
        self.addCleanup(first.end)
        pattern = r"merged in [0-9.]+ s: saved (\d+) KiB.* ready to be shared (-?\d+) KiB"
        self.assertGreater(int(first.wait_for(pattern, 1)[0][1]), 30 * 1024)
        second = guest.python(program)
        self.addCleanup(second.end)
        # Of 32 MiB, without the ends.
        self.assertGreater(int(second.wait_for(pattern, 1)[0][0]), 32 * 1024 - 16)
        print(first.said(), second.said(), file=sys.stderr)

    def test_contents_stay(self):
        import numpy

        table = numpy.arange(1 << 20) % 512
        sksm.merge(table.T)
        self.assertTrue((table == numpy.arange(1 << 20) % 512).all())
        table += 1
        self.assertTrue((table == numpy.arange(1 << 20) % 512 + 1).all())


if __name__ == "__main__":
    unittest.main()
