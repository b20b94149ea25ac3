"""Forks workers that each build the same table and merge it, and shows what is saved of each, and what takes it back."""

import gc
import multiprocessing
import sys

import sksm

WORKERS = 4


def saved():
    with open("/proc/self/ksm_stat") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("sksm_merged_pages")) / 256


def work(number, freeze, barrier):
    from app import table

    def show(step):
        barrier.wait()
        line = "worker %d, %s: %.1f MiB saved" % (number, step, saved())
        print(line, flush=True)
        barrier.wait()

    if freeze:
        sksm.freeze_and_merge()
    else:
        gc.collect()
        sksm.merge_heap()
    show("merged")
    gc.collect()
    show("after a collection")
    for key in range(0, len(table) // 10):
        table[key]
    show("a tenth read")
    for text in table.values():
        text
    show("all read")
    sksm.merge_heap()
    show("merged again")


if __name__ == "__main__":
    freeze = "freeze" in sys.argv
    barrier = multiprocessing.Barrier(WORKERS)
    crew = [multiprocessing.Process(target=work, args=(number, freeze, barrier)) for number in range(WORKERS)]
    for worker in crew:
        worker.start()
    for worker in crew:
        worker.join()
