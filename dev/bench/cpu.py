"""Measures what the processor's arithmetic gives, beside llama.cpp on the same files with the same threads in one run.

    cpu.py [--only FILES] [--parts PARTS] [--rounds N] RUNTIME LLAMA_FOLDER MODELS_FOLDER RESULTS_FOLDER

LLAMA_FOLDER is what dev/llama-server.sh prints. What is measured takes turns, and so does who of the two is first; what
counts is the median of the rounds.
"""

import argparse
import asyncio
import functools
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time

import servers
from servers import ANSWER, QUESTION, Record, ask, closed_loop
from side_by_side import report
from weights import weights

OURS, THEIRS = "escadre", "llama.cpp"
PROMPT, BEFORE, LONG = 512, 32, 64
CLIENTS, CONTEXT = 8, 1024
PARTS = ("prefill", "decode", "avx2", "server", "memory", "ready")


class File:
    """A model with its bars: how many times as fast as llama.cpp it has to be (`one` stream with 1 and with 2 threads), and
    what part of llama.cpp's time and memory it may take."""

    def __init__(self, title, name, *, prefill, one, eight, memory, server=None, first=None, chat=True):
        self.title, self.name, self.chat = title, name, chat
        self.rates = {("prefill", 1): prefill, ("prefill", 2): prefill, ("one", 1): one[0], ("one", 2): one[1],
                      ("eight", 2): eight}
        self.server, self.first, self.memory = server, first, memory


FILES = {
    "q4_0": File("Q4_0", "bench-SmolLM2-135M.Q4_0-1.gguf",
                 prefill=1.6, one=(1.3, 1.3), eight=1.8, server=1.6, first=0.6, memory=0.9),
    "q8_0": File("Q8_0", "bench-SmolLM2-135M.Q8_0-1.gguf",
                 prefill=2, one=(1.3, 1.3), eight=1.8, server=1.6, first=0.6, memory=0.9),
    "q4_1": File("Q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf",
                 prefill=4, one=(2, 2), eight=3, server=2.7, first=0.4, memory=1),
    "q4_k": File("0.55B Q4_K_M", "bench-llama-0.55B.Q4_K_M-1.gguf",
                 prefill=1.6, one=(1.25, 1.1), eight=1.8, server=1.6, first=0.6, memory=0.8),
    # It has no template for chats.
    "gemma": File("Gemma Q4_K_M", "gemma-3-270m-q4_k_m.gguf",
                  prefill=1.5, one=(1.2, 1.2), eight=1.8, memory=0.9, chat=False),
}
THREADS = (1, 2)
AVX2 = ("q4_0", "q4_k")
# Our own prompts of the first to those of the second.
LIKE_ANOTHER = ("q4_1", "q4_0", 0.9)
READY, MORE_CLIENTS = 1.0, 2.0
TITLES = {"prefill": f"prompt of {PROMPT}", "one": "1 stream", "eight": "8 streams"}
STREAMS = {"one": 1, "eight": 8}


def chosen(known):
    def those(text):
        names = text.split(",")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is not one of {', '.join(known)}")
        return [name for name in known if name in names]

    return those


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


parser = argparse.ArgumentParser(description="Measures the processor's arithmetic beside llama.cpp.")
parser.add_argument("--only", type=chosen(FILES), default=list(FILES), metavar="FILES", help=f"of {','.join(FILES)}")
parser.add_argument("--parts", type=chosen(PARTS), default=list(PARTS), metavar="PARTS", help=f"of {','.join(PARTS)}")
parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="how often everything is measured")
for argument in ("runtime", "llama", "models", "results"):
    parser.add_argument(argument)
given = parser.parse_args()


def path(name):
    return os.path.join(given.models, FILES[name].name)


def output(command):
    """What a program prints; it has to come to a good end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"{command[0]}: {error}")
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def ours(name, threads, kinds, options=()):
    """Tokens per second of every kind."""
    streams = [STREAMS[kind] for kind in kinds if kind in STREAMS]
    # The program measures both in any case: what is not wanted is short.
    prompt = PROMPT if "prefill" in kinds else 1
    got = json.loads(output([
        given.runtime, "bench", "--json", f"--model={path(name)}", f"--threads={threads}", "--rounds=1",
        f"--prompts={prompt}", f"--streams={','.join(map(str, streams or [1]))}", f"--answer={LONG if streams else 1}",
        *options]))
    rates = {one["streams"]: one["tokensPerSecond"]["median"] for one in got["streams"]}
    return {kind: rates[STREAMS[kind]] if kind in STREAMS else got["prompts"][0]["tokensPerSecond"]["median"]
            for kind in kinds}


def theirs(name, threads, kinds, folder):
    """The same of llama.cpp, whose programs warm up before they measure. One stream has nothing before its answer there."""
    rates = {}
    common = ["-m", path(name), "-t", str(threads)]
    tokens = {"prefill": PROMPT, "one": LONG}
    if wanted := [kind for kind in tokens if kind in kinds]:
        prompt, answer = (tokens[kind] if kind in kinds else 0 for kind in tokens)
        got = output([os.path.join(folder, "llama-bench"), *common, "-p", str(prompt), "-n", str(answer), "-r", "1",
                      "-o", "json"])
        for kind, one in zip(wanted, json.loads(got), strict=True):
            rates[kind] = round(one["avg_ts"], 1)
    if "eight" in kinds:
        got = output([
            os.path.join(folder, "llama-batched-bench"), *common, "-tb", str(threads), "-c", str(STREAMS["eight"] * 256),
            "-npp", str(BEFORE), "-ntg", str(LONG), "-npl", str(STREAMS["eight"]), "--output-format", "jsonl"])
        lines = [json.loads(line) for line in got.splitlines() if line.startswith("{")]
        if len(lines) != 1:
            sys.exit(f"llama-batched-bench printed {len(lines)} results, expected 1:\n{got[-3000:]}")
        rates["eight"] = round(lines[0]["speed_tg"], 1)
    return rates


class Measured:
    """Lists of numbers by kind and side, with one more of each after every round."""

    def __init__(self):
        self.numbers = {}
        self.turns = itertools.count(1)

    def round(self, title, sides, rounds=given.rounds):
        """Runs each of `sides` (name and function that gives numbers by kind); who is first changes every time."""
        turn, began, got = next(self.turns), time.monotonic(), {}
        for name in sides if turn % 2 else reversed(sides):
            got[name] = sides[name]()
        # In one order, whoever was first.
        for name in sides:
            for kind, number in got[name].items():
                self.numbers.setdefault(kind, {}).setdefault(name, []).append(number)
        text = ", ".join(f"{kind} {' / '.join(f'{sides[name][-1]:.4g}' for name in sides)}"
                         for kind, sides in self.numbers.items())
        print(f"{turn} of {rounds}  {title:28} {text}  ({time.monotonic() - began:.0f} s)", flush=True)

    def medians(self):
        return {kind: {name: statistics.median(numbers) for name, numbers in sides.items()}
                for kind, sides in self.numbers.items()}


def arithmetic(wanted):
    """Tokens per second of prompts and answers, without servers around them: by file and threads, and with AVX2."""
    native, avx2 = {}, {}
    for _ in range(given.rounds):
        for name in given.only:
            for threads in THREADS:
                kinds = [kind for kind, count in FILES[name].rates if count == threads and kind in wanted]
                if kinds:
                    native.setdefault(name, {}).setdefault(threads, Measured()).round(f"{FILES[name].title}, {many(threads)}", {
                        OURS: lambda: ours(name, threads, kinds),
                        THEIRS: lambda: theirs(name, threads, kinds, given.llama)})
            if name in AVX2 and "avx2" in given.parts:
                avx2.setdefault(name, Measured()).round(f"{FILES[name].title}, {many(2)}, AVX2", {
                    OURS: lambda: ours(name, 2, list(TITLES), ["--instructions=avx2"]),
                    THEIRS: lambda: theirs(name, 2, list(TITLES), os.path.join(given.llama, "avx2"))})
    return native, avx2


@functools.cache
def digest(name):
    """What a manifest would pin: our server refuses every other file."""
    with open(path(name), "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def start(name, side):
    """A server with as many slots of as much context as the other."""
    if side == OURS:
        options = ["--threads=2", f"--digest={digest(name)}"]
        return servers.escadre(given.runtime, path(name), CLIENTS, CONTEXT, options=options)
    # No prompt begins like one before: to keep those that are over would only take memory and time.
    return servers.llama(os.path.join(given.llama, "llama-server"), path(name), CLIENTS, CONTEXT, threads=2,
                         options=["--cache-ram", "0"])


def serving(name):
    """Many clients of both servers, and the memory that these have then."""
    file, measured = FILES[name], Measured()
    both = {side: start(name, side) for side in (OURS, THEIRS)}
    for server in both.values():
        asyncio.run(ask(server, Record(), chat=file.chat))
    is_whole = file.server is not None and "server" in given.parts

    def closed(side, clients):
        questions = itertools.repeat((QUESTION, ANSWER, {}, file.chat))
        loop = asyncio.run(closed_loop(both[side], clients, 5, questions))
        if loop["failed"]:
            sys.exit(f"{file.title}: {loop['failed']} of {loop['requests']} requests to {side} failed")
        return loop

    def side(name):
        loop = closed(name, CLIENTS)
        alone = name == OURS and file is FILES["q4_0"] and is_whole
        return {"rate": loop["tokensPerSecond"], "first": loop["ttft"]["p50"],
                **({"alone": closed(name, 1)["tokensPerSecond"]} if alone else {})}

    rounds = given.rounds if is_whole else 1
    for _ in range(rounds):
        measured.round(f"{file.title}, {CLIENTS} clients", {OURS: lambda: side(OURS), THEIRS: lambda: side(THEIRS)}, rounds)
    for kind, field in (("memory", "VmRSS"), ("memoryOfNoFile", "RssAnon")):
        measured.numbers[kind] = {name: [round(server.memory(field))] for name, server in both.items()}
    print(f"{file.title}, megabytes: {' / '.join(str(numbers[0]) for numbers in measured.numbers['memory'].values())}",
          flush=True)
    for server in both.values():
        server.stop()
    return measured


def ready(name):
    """Seconds from the start of each server's process until it can be asked."""
    measured = Measured()

    def side(which):
        server = start(name, which)
        server.stop()
        return {"ready": round(server.seconds, 3)}

    # Read whole, so that the file is in the system's memory for both.
    digest(name)
    for _ in range(given.rounds):
        measured.round(f"{FILES[name].title}, seconds", {OURS: lambda: side(OURS), THEIRS: lambda: side(THEIRS)})
    return measured


def ratio(pair):
    return pair[OURS] / pair[THEIRS]


def many(threads):
    return f"{threads} thread{'s' * (threads > 1)}"


def table(title, rows):
    """Rows of file, kind, threads, and rates of both sides. Beside them is what they take of the machine: thousands of
    millions of operations per second, and of bytes of weights that answers read."""
    if not rows:
        return
    print(f"\n{title:40} {'escadre':>9} {'llama.cpp':>9} {'ratio':>6} {'GOP/s':>13} {'GB/s':>13}")
    sizes = {name: weights(path(name)) for name in given.only}
    for name, kind, threads, pair in rows:
        body, answer, size = sizes[name]
        parameters = body if kind == "prefill" else answer
        operations = " / ".join(f"{2 * parameters * pair[side] / 1e9:.0f}" for side in pair)
        read = " / ".join(f"{size * pair[side] / STREAMS[kind] / 1e9:.1f}" for side in pair) if kind in STREAMS else ""
        label = f"{FILES[name].title}, {TITLES[kind]}, {many(threads)}"
        print(f"{label:40} {pair[OURS]:9.1f} {pair[THEIRS]:9.1f} {ratio(pair):6.2f} {operations:>13} {read:>13}")


def least(label, wanted, measured):
    return label, f">= {wanted:g}", measured, measured >= wanted


def most(label, wanted, measured):
    return label, f"<= {wanted:g}", measured, measured <= wanted


def bars_of(median):
    """Every bar whose numbers there are."""
    bars = []
    rates, loops, begun = (median.get(part, {}) for part in ("arithmetic", "serving", "ready"))
    for name in given.only:
        file = FILES[name]
        for (kind, threads), wanted in file.rates.items():
            if pair := rates.get(name, {}).get(threads, {}).get(kind):
                label = f"{file.title}, {TITLES[kind]}, {many(threads)}"
                bars.append(least(label, wanted, ratio(pair)))
        loop = loops.get(name, {})
        if "server" in given.parts and file.server:
            bars.append(least(f"{file.title}, {CLIENTS} clients, tokens per second", file.server, ratio(loop["rate"])))
            bars.append(most(f"{file.title}, {CLIENTS} clients, first token, p50", file.first, ratio(loop["first"])))
        if "memory" in given.parts:
            bars.append(most(f"{file.title}, resident memory", file.memory, ratio(loop["memory"])))
        if name in begun:
            bars.append(most(f"{file.title}, start to ready", READY, ratio(begun[name]["ready"])))
    one, other, wanted = LIKE_ANOTHER
    for threads in THREADS:
        pairs = [rates.get(name, {}).get(threads, {}).get("prefill") for name in (one, other)]
        if all(pairs):
            label = f"our {FILES[one].title} / our {FILES[other].title} {TITLES['prefill']}, {many(threads)}"
            bars.append(least(label, wanted, pairs[0][OURS] / pairs[1][OURS]))
    if alone := loops.get("q4_0", {}).get("alone"):
        measured = loops["q4_0"]["rate"][OURS] / alone[OURS]
        bars.append(least(f"our {FILES['q4_0'].title}, {CLIENTS} clients / 1, tokens per second", MORE_CLIENTS, measured))
    return bars


def busy():
    """The part of the processors' time that others take."""
    def times():
        with open("/proc/stat") as file:
            return [int(field) for field in file.readline().split()[1:9]]

    before = times()
    time.sleep(1)
    passed = [later - one for one, later in zip(before, times())]
    # The fourth and the fifth are idle, and idle while something is read.
    return 1 - (passed[3] + passed[4]) / max(1, sum(passed))


def main():
    for name in given.only:
        if not os.path.exists(path(name)):
            sys.exit(f"{path(name)} is not there; dev/bench-models.sh makes it")
    if (share := busy()) > 0.05:
        print(f"something else takes {share:.0%} of this machine: the numbers, most of all those of 2 threads, say little",
              flush=True)
    began = time.monotonic()
    everything = {}
    everything["arithmetic"], everything["avx2"] = arithmetic(
        ["prefill"] * ("prefill" in given.parts) + ["one", "eight"] * ("decode" in given.parts))
    if {"server", "memory"} & set(given.parts):
        everything["serving"] = {name: serving(name) for name in given.only if FILES[name].server or "memory" in given.parts}
    if "ready" in given.parts:
        everything["ready"] = {name: ready(name) for name in given.only}
    print(f"\nmeasured in {(time.monotonic() - began) / 60:.1f} minutes")

    def each(tree, function):
        return function(tree) if isinstance(tree, Measured) else {key: each(one, function) for key, one in tree.items()}

    median = each(everything, Measured.medians)
    table("tokens per second", [
        (name, kind, threads, pair) for name, counts in median["arithmetic"].items()
        for threads, kinds in counts.items() for kind, pair in kinds.items()])
    table("with AVX2 and nothing newer", [
        (name, kind, 2, pair) for name, kinds in median["avx2"].items() for kind, pair in kinds.items()])
    with open(os.path.join(given.llama, "version")) as file:
        versions = {"llama-cpp-python": file.read().strip()}
    report("cpu", given.results, versions, each(everything, lambda one: one.numbers), median, bars_of(median))


main()
