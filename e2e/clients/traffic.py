"""Asks a model without pause, as applications do, and keeps a record of every request.

    traffic.py BASE_URL MODEL RECORDS [WORKERS]

The official client, unmodified and without retries, so that nothing that goes wrong is hidden. WORKERS (20) share one
client and its connections: most stream short answers, some long ones, some take their answers whole. Two more have
clients of their own: one keeps its connection idle between two requests, one asks for the list of models several times
a second, each time on a new connection.

Prints `flowing` when the first answer has come. At SIGTERM open requests are finished, then a summary is printed as one
line of JSON. RECORDS gets a line of JSON for each request: its kind, when it started and ended (seconds of the
clock), how many chunks came, the finish reason, the fingerprint, and the error if there was one. A stream that does not
end with a finish reason is an error, and it was cut.
"""

import asyncio
import collections
import json
import random
import signal
import sys
import time

import openai

base_url, model, records = sys.argv[1:4]
WORKERS = int(sys.argv[4]) if len(sys.argv) > 4 else 20
# Seconds between the requests of a worker that makes a pause.
PAUSES = {"idle": 3.5, "knock": 0.25}
# Longer than any answer takes on a busy machine of two cores.
TIMEOUT = openai.Timeout(120, connect=10)
# After an error: a server that refuses everything is asked a few times a second, not thousands.
PAUSE = 0.5


class Unfinished(Exception):
    """The stream ended, and its answer did not."""


class Traffic:
    def __init__(self, file):
        self.file = file
        self.stopping = asyncio.Event()
        self.open = 0
        self.samples = []
        self.flowing = asyncio.Event()
        self.requests = self.failed = self.cut = 0
        self.fingerprints = collections.Counter()
        self.kinds = collections.Counter()
        self.errors = collections.Counter()

    async def worker(self, kind, client, seed):
        dice = random.Random(seed)
        while not self.stopping.is_set():
            if await self.request(kind, client, dice):
                if kind != "knock":
                    self.flowing.set()
            else:
                await asyncio.sleep(PAUSE)
            if kind in PAUSES:
                await self.pause(PAUSES[kind])

    async def pause(self, seconds):
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    async def request(self, kind, client, dice):
        record = {"kind": kind, "started": time.time(), "begun": False, "chunks": 0, "finish": None, "fingerprint": None}
        options = {
            "model": model,
            # The model's template has a long system message for those who bring none.
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Name {dice.randint(2, 99)} ships."},
            ],
            "max_tokens": dice.randint(40, 64) if kind == "long" else dice.randint(8, 16),
        }
        try:
            if kind == "knock":
                await client.models.list(extra_headers={"Connection": "close"})
                record["finish"] = "stop"
            elif kind == "whole":
                self.take(record, await client.chat.completions.create(**options))
            else:
                await self.stream(record, client, options)
            if record["finish"] is None:
                raise Unfinished("the stream ended without a finish reason")
        except Exception as error:
            record["error"] = said(error)
        record["ended"] = time.time()
        self.count(record)
        return "error" not in record

    async def stream(self, record, client, options):
        async with await client.chat.completions.create(**options, stream=True) as stream:
            record["begun"] = True
            self.open += 1
            try:
                async for chunk in stream:
                    self.take(record, chunk)
            finally:
                self.open -= 1

    def take(self, record, answer):
        record["begun"] = True
        record["chunks"] += 1
        record["fingerprint"] = answer.system_fingerprint
        if answer.choices:
            record["finish"] = answer.choices[0].finish_reason or record["finish"]

    def count(self, record):
        self.requests += 1
        self.kinds[record["kind"]] += 1
        if record["fingerprint"]:
            self.fingerprints[record["fingerprint"]] += 1
        if "error" in record:
            self.failed += 1
            self.cut += record["begun"]
            self.errors[record["error"]] += 1
        print(json.dumps(record), file=self.file, flush=True)

    async def sample(self):
        """Looks how many streams are open, from the first answer on."""
        await self.flowing.wait()
        print("flowing", flush=True)
        while not self.stopping.is_set():
            self.samples.append(self.open)
            await asyncio.sleep(0.05)

    def summary(self):
        return {
            "requests": self.requests,
            "failed": self.failed,
            "cut": self.cut,
            "fingerprints": self.fingerprints,
            "kinds": self.kinds,
            "errors": self.errors,
            "openStreams": {
                "least": min(self.samples, default=0),
                "average": round(sum(self.samples) / max(1, len(self.samples)), 1),
            },
        }


def said(error):
    """An error with its causes: the outermost of a broken connection says nothing."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return "; ".join(dict.fromkeys(texts))


async def main():
    loop = asyncio.get_running_loop()
    with open(records, "w") as file:
        traffic = Traffic(file)
        loop.add_signal_handler(signal.SIGTERM, traffic.stopping.set)
        shared, idle, knock = (
            openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=TIMEOUT) for _ in range(3)
        )
        kinds = ["long" if n % 6 == 1 else "whole" if n % 6 == 3 else "stream" for n in range(WORKERS)]
        workers = [traffic.worker(kind, shared, n) for n, kind in enumerate(kinds)]
        sampler = asyncio.create_task(traffic.sample())
        workers += [traffic.worker("idle", idle, WORKERS), traffic.worker("knock", knock, WORKERS)]
        await asyncio.gather(*workers)
        sampler.cancel()
    print(json.dumps(traffic.summary()), flush=True)


asyncio.run(main())
