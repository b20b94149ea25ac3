import sys

import numpy
import sksm

table = numpy.arange(4 << 20, dtype="float64") ** 0.5
print(sksm.merge(table), flush=True)
sys.stdin.read()
