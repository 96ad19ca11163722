"""Measures serving to many clients at once, beside llama.cpp's own server on the same file in the same run.

    serving.py RUNTIME LLAMA_SERVER LLAMA_VERSION MODEL TRACE RESULTS_FOLDER

TRACE is a list of arrivals and lengths: TIMESTAMP,ContextTokens,GeneratedTokens. Where it is not there, what needs it is
left out.
Both servers run side by side; whoever is not measured is idle. What is measured takes turns.
"""

import asyncio
import csv
import datetime
import functools
import itertools
import os
import random
import sys
import time

import servers
from servers import ANSWER, QUESTION, Record, ask, closed_loop, percentiles, rate, summary
from side_by_side import report

runtime, llama_server, llama_version, model, trace, results = sys.argv[1:]
# A trial with shorter phases, whose numbers say little.
PACE = float(os.environ.get("ESCADRE_BENCH_PACE", "1"))
LEVELS = [1, 4, 8, 16, 32, 64]
SLOTS, CONTEXT = 32, 1024
# Falls that are smaller than this are noise.
NOISE = 0.95
escadre = functools.partial(servers.escadre, runtime, model)
llama = functools.partial(servers.llama, llama_server, model)


def words(tokens, dice):
    """A text of about so many tokens: these are one each in most vocabularies."""
    common = "the of and to in is it for on was with as at by from or an be this that".split()
    return " ".join(dice.choice(common) for _ in range(max(1, tokens)))


def arrivals(shrink, count):
    """The first arrivals of the trace, in seconds, with lengths that are divided by `shrink`."""
    with open(trace) as file:
        rows = list(itertools.islice(csv.DictReader(file), count))
    moments = [datetime.datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [((moment - moments[0]).total_seconds(), max(1, int(row["ContextTokens"]) // shrink),
             max(1, int(row["GeneratedTokens"]) // shrink)) for moment, row in zip(moments, rows)]


def question(prompt, answer, dice):
    """A question of the trace: its text, and the tokens of its answer."""
    # The template and the question's frame are about 30 tokens.
    return words(prompt - 30, dice), answer


async def open_loop(server, schedule):
    """Requests at their times, whatever became of those before."""
    dice, records = random.Random(7), []
    start = time.monotonic()

    async def one(at, prompt, answer):
        await asyncio.sleep(at)
        records.append(record := Record())
        await ask(server, record, *question(prompt, answer, dice))

    await asyncio.gather(*(one(*line) for line in schedule))
    return {"seconds": round(time.monotonic() - start, 1), **summary(records)}


async def fairness(server, seconds, rounds=2):
    """Seven streams, alone and while a long prompt is read. What it costs both, over some rounds: the machine is not
    always as fast, and each side is measured at several times."""
    # The first request after the start reads weights that were never touched.
    await ask(server, Record(), tokens=8)
    dice, records, alone, among, quiet, busy = random.Random(3), [], [], [], [], []

    async def long_prompt():
        return (await ask(server, Record(), words(4000, dice), 1)).first

    async def stream():
        while True:
            records.append(record := Record())
            await ask(server, record, tokens=400)

    for _ in range(rounds):
        alone.append(await long_prompt())
        tasks = [asyncio.create_task(stream()) for _ in range(7)]
        await asyncio.sleep(3)
        begin = time.monotonic()
        await asyncio.sleep(seconds)
        quiet.append((begin, time.monotonic()))
        begin = time.monotonic()
        among.append(await long_prompt())
        busy.append((begin, time.monotonic()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def worst(times):
        gaps = [later - one for record in records for one, later in itertools.pairwise(record.parts)
                if any(start <= later < end for start, end in times)]
        return percentiles(gaps)["p99"]

    return {"alone": round(sum(alone) / rounds, 3), "among": round(sum(among) / rounds, 3),
            "p99Quiet": worst(quiet), "p99Among": worst(busy),
            "tokensDuring": round(sum(rate(records, *times) for times in busy) / rounds, 1)}


async def overload(server, seconds, steady):
    """Three times as many requests as it can answer. Then everybody goes away at once. What it answers meanwhile is
    compared with as many clients as it has slots, before and after: the machine is not always as fast."""
    before_it = (await closed_loop(server, SLOTS, steady))["tokensPerSecond"]
    calm = await ask(server, Record(), tokens=1)
    before = server.memory("VmRSS")
    dice, records, tasks = random.Random(11), [], []
    per_second = 3 * before_it / ANSWER
    start = time.monotonic()

    async def one():
        records.append(record := Record())
        await ask(server, record)

    while time.monotonic() - start < seconds:
        tasks.append(asyncio.create_task(one()))
        await asyncio.sleep(dice.expovariate(per_second))
    end = time.monotonic()
    peak = server.memory("VmHWM")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # The next to come is answered as soon as the server has seen that the others are gone.
    again, after = time.monotonic(), None
    while after is None or (after.status == 429 and time.monotonic() < again + 60):
        after = await ask(server, Record(), tokens=1)
    after_it = (await closed_loop(server, SLOTS, steady))["tokensPerSecond"]
    best = (before_it + after_it) / 2
    # The first quarter fills the queue. Goodput is of requests that were answered, or were being answered at the end.
    warm = start + seconds / 4
    taken = [record for record in records if record.status == 200]
    refused = [record for record in records if record.status == 429]
    others = [record for record in records if record.status not in (200, 429, None) or (record.error and record.status == 200)]
    return {
        "requestsPerSecond": round(per_second, 2),
        "requests": len(records),
        "taken": len(taken),
        "refused": len(refused),
        "withoutRetryAfter": sum(1 for record in refused if not record.retry_after),
        "otherwise": len(others),
        "tokensPerSecond": {"without": round(best, 1), "with": round(rate(taken, warm, end), 1)},
        "goodput": round(rate(taken, warm, end) / best, 3),
        "ttft": percentiles([record.first for record in taken if record.parts]),
        "memory": {"before": round(before), "peak": round(peak)},
        # Who comes after it finds a step of it under way.
        "step": percentiles([gap for record in taken for gap in record.gaps]).get("p50"),
        "firstTokenCalm": round(calm.first, 3),
        "firstTokenAfter": round(after.parts[0] - again, 3) if after.parts else None,
    }


async def grammar(server, seconds, clients=16):
    """Tokens per second of many clients, of whom nobody or every second one wants an answer by a schema, in turns. The
    schema's text is longer than an answer may be, so that all answers are of one length."""
    story = {"type": "string", "minLength": 20 * ANSWER}
    schema = {"type": "object", "additionalProperties": False, "required": ["story"], "properties": {"story": story}}
    held = {"response_format": {"type": "json_schema", "json_schema": {"name": "story", "schema": schema}}}
    rounds = {"without": [], "half": []}
    for name in 2 * ("without", "half"):
        kinds = itertools.cycle([(QUESTION, ANSWER), (QUESTION, ANSWER, held if name == "half" else {})])
        rounds[name].append(await closed_loop(server, clients, seconds, kinds))
    return {
        "failed": sum(loop["failed"] for loops in rounds.values() for loop in loops),
        **{name: round(sum(loop["tokensPerSecond"] for loop in loops) / 2, 1) for name, loops in rounds.items()},
    }


class OneCore:
    """A cgroup of version 1 with the time of one processor, as a pod with `cpu: 1` has it; None where there is none."""

    path = "/sys/fs/cgroup/cpu/escadre-bench"

    @classmethod
    def make(cls):
        try:
            os.makedirs(cls.path, exist_ok=True)
            for name, value in (("cpu.cfs_period_us", 100_000), ("cpu.cfs_quota_us", 100_000)):
                with open(f"{cls.path}/{name}", "w") as file:
                    file.write(str(value))
        except OSError:
            return None
        return ["sh", "-c", f'echo $$ >{cls.path}/cgroup.procs && exec "$@"', "sh"]

    @classmethod
    def remove(cls):
        os.rmdir(cls.path)


async def one_core(start, seconds):
    """Tokens per second of one client in a cgroup of one processor, and of a process that is pinned to one."""
    prefix = OneCore.make()
    if prefix is None:
        return None
    rounds = {"quota": [], "pinned": []}
    # In turns: the two are minutes apart otherwise, and the machine is not the same then.
    for name, wrapper in 2 * (("quota", prefix), ("pinned", ["taskset", "--cpu-list", "0"])):
        server = start(wrapper)
        await ask(server, Record())
        rounds[name].append((await closed_loop(server, 1, seconds / 2))["tokensPerSecond"])
        server.stop()
    OneCore.remove()
    return {name: sum(rates) / len(rates) for name, rates in rounds.items()}


def show(title, rows):
    print(f"\n{title}", flush=True)
    for name, row in rows:
        print(f"  {name:22} {row}", flush=True)


async def run():
    record = {}
    both = [escadre(SLOTS, CONTEXT), llama(SLOTS, CONTEXT)]
    ours = both[0]
    for server in both:
        await ask(server, Record())

    record["closed"] = {server.name: {} for server in both}
    # Many clients that began together read their prompts together for some rounds: a longer look evens that out.
    print(f"{'tokens per second':>22} {'escadre':>10} {'llama-server':>13}", flush=True)
    for clients in LEVELS:
        for server in both:
            record["closed"][server.name][clients] = await closed_loop(server, clients, (12 if clients < 16 else 22) * PACE)
        line = [record["closed"][server.name][clients]["tokensPerSecond"] for server in both]
        print(f"{clients:>14} clients {line[0]:10.1f} {line[1]:13.1f}", flush=True)
    record["memory"] = {server.name: {"steady": round(server.memory("VmRSS")), "peak": round(server.memory("VmHWM"))}
                        for server in both}
    show("megabytes", record["memory"].items())

    rates = {n: record["closed"]["escadre"][n]["tokensPerSecond"] for n in LEVELS}
    if os.path.exists(trace):
        # The trace with lengths that the small model's context holds, at six tenths of what the slower one can answer.
        capacity = {}
        for server in both:
            dice, lines = random.Random(5), arrivals(8, 400)
            questions = (question(prompt, answer, dice) for _, prompt, answer in lines)
            capacity[server.name] = (await closed_loop(server, 16, 20 * PACE, questions))["requestsPerSecond"]
        record["traceCapacity"] = capacity
        show("requests of the trace per second, 16 clients", capacity.items())
        seconds = 60 * PACE
        lines = arrivals(8, max(2, int(seconds * 0.6 * min(capacity.values()))))
        schedule = [(at * seconds / lines[-1][0], prompt, answer) for at, prompt, answer in lines]
        record["trace"] = {server.name: await open_loop(server, schedule) for server in both}
        show(f"open loop: {len(schedule)} requests of the trace", record["trace"].items())
    else:
        print(f"\nno open loop: {trace} is not there; name a trace of the Azure public dataset by ESCADRE_BENCH_TRACE")

    record["grammar"] = await grammar(ours, 10 * PACE)
    show("16 clients, half of them with a schema, escadre", record["grammar"].items())

    record["overload"] = await overload(ours, 120 * PACE, 12 * PACE)
    show("overload, escadre", record["overload"].items())
    for server in both:
        server.stop()

    record["fairness"] = {}
    for start in (escadre, llama):
        server = start(8, 4608)
        record["fairness"][server.name] = await fairness(server, 15 * PACE)
        server.stop()
    show("7 streams and a prompt of 4,000 tokens", record["fairness"].items())

    record["oneCore"] = {
        "escadre": await one_core(lambda prefix: escadre(1, CONTEXT, prefix), 12 * PACE),
        # As its users start it: without a word about threads.
        "llama-server": await one_core(lambda prefix: llama(1, CONTEXT, prefix, threads=-1), 12 * PACE),
    }
    show("one processor", record["oneCore"].items())
    return record, rates


def main():
    record, rates = asyncio.run(run())
    upto = [rates[n] for n in LEVELS if n <= 32]
    falls = min(later / max(upto[:at + 1]) for at, later in enumerate(upto[1:]))
    closed, over, fair, core = (record[key] for key in ("closed", "overload", "fairness", "oneCore"))
    ours = fair["escadre"]
    gaps, wait = ours["p99Among"] / ours["p99Quiet"], ours["among"] / ours["alone"]
    memory = over["memory"]["peak"] / over["memory"]["before"]
    again = (over["firstTokenAfter"] or float("inf")) / (over["firstTokenCalm"] + over["step"])
    bad = over["otherwise"] + over["withoutRetryAfter"]
    bars = [
        ("tok/s, more clients / fewer, least, to 32", f">= {NOISE}", falls, falls >= NOISE),
        ("requests failed, 64 clients", "0", closed["escadre"][64]["failed"], closed["escadre"][64]["failed"] == 0),
        ("p99 gap with a long prompt / without", "<= 2", gaps, gaps <= 2),
        ("long prompt's first token / alone", "<= 2.5", wait, wait <= 2.5),
        ("overload: goodput / best", ">= 0.9", over["goodput"], over["goodput"] >= 0.9),
        ("overload: neither answered nor a usable 429", "0", bad, bad == 0),
        ("overload: memory at its peak / before", "<= 1.2", memory, memory <= 1.2),
        ("first token after it / before, and a step of it", "<= 2", again, again <= 2),
    ]
    held = record["grammar"]
    bars += [
        ("tok/s, half of the requests with a schema / none", ">= 0.9", held["half"] / held["without"],
         held["half"] / held["without"] >= 0.9 and held["failed"] == 0),
    ]
    if core["escadre"]:
        ratio = core["escadre"]["quota"] / core["escadre"]["pinned"]
        bars.append(("tok/s, quota of one core / pinned to one", ">= 0.9", ratio, ratio >= 0.9))
    print(f"\n{'Escadre / llama-server':44}")
    for clients in LEVELS:
        pair = [closed[name][clients]["tokensPerSecond"] for name in ("escadre", "llama-server")]
        print(f"  tokens per second, {clients:2} clients {pair[0] / pair[1]:9.2f}")
    report("serving", results, {"llama-cpp-python": llama_version}, record, {}, bars)


main()
