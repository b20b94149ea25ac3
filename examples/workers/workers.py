"""Workers that hold equal memory: what merges of it, and what comes apart again, is in docs/guide.md.

Each prints "ready" when it holds its memory, and then serves as many requests as each line of standard input
says: a request reads one entry, at random.
"""

import argparse
import gc
import json
import os
import random
import sys


def table():
    """Objects with pointers, and with counts of references, which reading changes."""
    items = {number: json.dumps({"id": number, "name": "item %d" % number}) for number in range(100_000)}
    return lambda: json.loads(items[random.randrange(len(items))])


def buffer():
    """Bytes without pointers, as model weights and decoded images are."""
    weights = bytearray(32 << 20)
    source = random.Random(1)
    for start in range(0, len(weights), 4096):
        weights[start : start + 8] = source.getrandbits(64).to_bytes(8, "little")
    return lambda: weights[random.randrange(len(weights))]


def serve(build, requests, replies, freeze):
    request = build()
    if freeze:
        gc.collect()
        gc.freeze()
    print("ready", file=replies, flush=True)
    for line in requests:
        for _ in range(int(line)):
            request()
        print("served", file=replies, flush=True)


def fork(workers, build, freeze):
    """Forks workers that build their memory for themselves, and passes requests on to all of them."""
    pipes = []
    for _ in range(workers):
        requests, replies = os.pipe(), os.pipe()
        if os.fork() == 0:
            os.close(requests[1])
            serve(build, os.fdopen(requests[0]), os.fdopen(replies[1], "w"), freeze)
            os._exit(0)
        os.close(requests[0])
        os.close(replies[1])
        pipes.append((os.fdopen(requests[1], "w"), os.fdopen(replies[0])))
    answers = {reply.readline() for _, reply in pipes}
    print(*answers, end="", flush=True)
    for line in sys.stdin:
        for request, _ in pipes:
            print(line, end="", file=request, flush=True)
        answers = {reply.readline() for _, reply in pipes}
        print(*answers, end="", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fork", type=int, metavar="N", help="fork so many workers, which then build")
    parser.add_argument("--freeze", action="store_true", help="collect garbage, and keep what is left out of collections")
    parser.add_argument("memory", choices=["table", "buffer"])
    arguments = parser.parse_args()
    build = {"table": table, "buffer": buffer}[arguments.memory]
    if arguments.fork:
        fork(arguments.fork, build, arguments.freeze)
    else:
        serve(build, sys.stdin, sys.stdout, arguments.freeze)


main()
