"""Data in memory once for all processes, by the store."""

import gc
import os
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import guest
import sksm.store
from guest import MIB, needs


def library():
    try:
        sksm.store._store()
    except sksm.store.StoreError as error:
        return str(error)
    return None


WHY_NOT = library()


@unittest.skipIf(WHY_NOT, WHY_NOT)
class Freezing(unittest.TestCase):
    def setUp(self):
        home = tempfile.TemporaryDirectory(dir="/dev/shm")
        self.addCleanup(home.cleanup)
        os.environ["SKSM_STORE_DIR"] = home.name
        self.addCleanup(os.environ.pop, "SKSM_STORE_DIR")
        self.home = home.name

    def files(self):
        return [name for name in os.listdir(self.home) if name != ".lock"]

    def test_bytes_are_there_once_and_read_only(self):
        data = bytes(range(256)) * 4096
        one, two = sksm.store.freeze(data), sksm.store.freeze(bytearray(data))
        self.assertEqual((one, two), (data, data))
        self.assertTrue(one.readonly)
        self.assertEqual(len(self.files()), 1)
        with self.assertRaises(TypeError):
            one[0] = 1
        self.assertEqual(sksm.store.freeze(b""), b"")

    def test_the_last_reference_gives_it_back(self):
        one = sksm.store.freeze(b"x" * MIB)
        part = one[5:10]
        del one
        gc.collect()
        self.assertEqual(sksm.store.collect(), 0)
        self.assertEqual(part, b"xxxxx")
        del part
        gc.collect()
        self.assertEqual(sksm.store.collect(), MIB)

    def test_another_process_has_the_same_memory(self):
        kept = sksm.store.freeze(b"y" * MIB)
        code = "import sksm.store; print(len(sksm.store.freeze(b'y' * (1 << 20))))"
        path = os.path.dirname(os.path.dirname(sksm.__file__))
        printed = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE, check=True)
        self.assertEqual(int(printed.stdout), len(kept))
        self.assertEqual(len(self.files()), 1)

    def test_what_stands_against_it_is_said(self):
        os.chmod(self.home, 0o755)
        with self.assertRaisesRegex(sksm.store.StoreError, "chmod it to 700"):
            sksm.store.freeze(b"data")
        with self.assertRaises(TypeError):
            sksm.store.freeze(7)

    @needs("numpy", "python3-numpy")
    def test_arrays_stay_arrays(self):
        import numpy

        table = numpy.arange(1 << 16, dtype="float32").reshape(256, 256)
        for array in (table, table.T, table[16:32], numpy.float64(3.5).reshape(()), numpy.zeros((0, 3))):
            frozen = sksm.store.freeze(array)
            self.assertEqual((frozen.shape, frozen.dtype), (array.shape, array.dtype))
            self.assertTrue((frozen == array).all())
            self.assertFalse(frozen.flags.writeable)
            with self.assertRaises(ValueError):
                frozen.flags.writeable = True
        with self.assertRaises(TypeError):
            sksm.store.freeze(numpy.array([object()]))

    @needs("numpy", "python3-numpy")
    def test_what_is_more_than_its_bytes_is_refused(self):
        import numpy

        whole = numpy.arange(4)
        others = (numpy.ma.array([1, 2, 3], mask=[0, 1, 0]), whole.view(numpy.recarray), numpy.matrix("1 2"))
        for other in others:
            with self.assertRaisesRegex(TypeError, "more than its bytes"):
                sksm.store.freeze(other)

        class Described:
            __array_interface__ = whole.__array_interface__

        with self.assertRaisesRegex(TypeError, "more than its bytes"):
            sksm.store.freeze(Described())

    def test_others_than_numpy_describe_arrays(self):
        class Described(bytearray):
            __array_interface__ = {"version": 3}

        with mock.patch.dict(sys.modules):
            sys.modules.pop("numpy", None)
            with self.assertRaisesRegex(TypeError, "more than its bytes"):
                sksm.store.freeze(Described(b"data"))


if __name__ == "__main__":
    unittest.main()
