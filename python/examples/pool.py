import multiprocessing
import sys

import sksm.hooks


def start():
    global table
    from app import table

    sksm.hooks.merge_now(log=print)


def look(number):
    return len(table[number])


if __name__ == "__main__":
    with multiprocessing.Pool(4, start) as pool:
        print(sum(pool.map(look, range(1000))), flush=True)
        sys.stdin.read()
