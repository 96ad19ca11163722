"""Servers under test, ours and llama.cpp's own, and clients that ask them."""

import asyncio
import atexit
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

CORES = os.cpu_count()
# Tokens of the answers of the closed loops.
ANSWER = 48
QUESTION = "Tell me a long story about the sea and its many ships, please."
unique = itertools.count()
# An end from outside is one like any other: the servers end with it.
for one in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(one, lambda *_: sys.exit("ended from outside"))


class Server:
    """A server under test."""

    def __init__(self, name, command, port, ready):
        self.name, self.port = name, port
        self.log = tempfile.TemporaryFile()
        began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        atexit.register(self.process.kill)
        deadline = time.monotonic() + 120
        while not answers(ready):
            if time.monotonic() > deadline or self.process.poll() is not None:
                self.log.seek(0)
                sys.exit(f"{name} does not serve:\n{self.log.read().decode()[-3000:]}")
            time.sleep(0.01)
        # From the start of the process on.
        self.seconds = time.monotonic() - began

    def memory(self, field):
        """Megabytes: VmRSS is what it holds now, VmHWM the most that it held."""
        with open(f"/proc/{self.process.pid}/status") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field + ":"))

    def stop(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def escadre(runtime, model, slots, context, prefix=(), options=()):
    port, admin = free_port(), free_port()
    command = [*prefix, runtime, "serve", f"--model={model}", "--served-name=m", f"--port={port}", f"--admin-port={admin}",
               f"--max-concurrency={slots}", f"--max-context={context}", *options]
    return Server("escadre", command, port, f"http://127.0.0.1:{admin}/readyz")


def llama(llama_server, model, slots, context, prefix=(), threads=CORES, options=()):
    port = free_port()
    command = [*prefix, llama_server, "-m", model, "--port", str(port), "-np", str(slots), "-c", str(slots * context),
               "-t", str(threads), "-tb", str(threads), "--no-ui", "-a", "m", *options]
    return Server("llama-server", command, port, f"http://127.0.0.1:{port}/health")


class Record:
    """One request: when it began, and when each part of its answer came."""

    def __init__(self):
        self.began = time.monotonic()
        self.status = None
        self.retry_after = None
        self.parts = []
        self.finished = None
        self.error = None

    @property
    def first(self):
        return self.parts[0] - self.began

    @property
    def gaps(self):
        return [later - one for one, later in itertools.pairwise(self.parts)]


async def ask(server, record, prompt=QUESTION, tokens=ANSWER, more={}, chat=True):
    """Streams one answer into the record. HTTP by hand: the client takes as little of the processors as possible."""
    # No two prompts begin alike, so that nothing is found in a cache.
    system = f"You are ship {next(unique)}."
    if chat:
        path = b"chat/completions"
        asked = {"messages": [{"role": "system", "content": system}, {"role": "user", "content": prompt}]}
    else:
        path, asked = b"completions", {"prompt": f"{system} {prompt}"}
    body = json.dumps({"model": "m", "stream": True, "max_tokens": tokens, "temperature": 0, **asked, **more}).encode()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                     b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (path, len(body)) + body)
        record.status = int((await reader.readline()).split()[1])
        while (line := (await reader.readline()).strip()):
            key, _, value = line.partition(b":")
            if key.lower() == b"retry-after":
                record.retry_after = int(value)
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            data = json.loads(line[6:])
            if "error" in data:
                record.error = str(data["error"])
            for choice in data.get("choices", []):
                if choice.get("delta", {}).get("content") or choice.get("text"):
                    record.parts.append(time.monotonic())
                if choice.get("finish_reason"):
                    record.finished = time.monotonic()
        if record.status != 200 or record.finished is None:
            record.error = record.error or f"status {record.status}, not finished"
    except (OSError, ValueError, IndexError) as error:
        record.error = repr(error)
    finally:
        if writer is not None:
            writer.close()
    return record


def percentiles(values):
    ordered = sorted(values)
    if not ordered:
        return {}
    return {f"p{p}": round(ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 4) for p in (50, 95, 99)}


def summary(records):
    done = [record for record in records if record.finished and record.parts]
    return {
        "requests": len(records),
        "failed": sum(1 for record in records if record.error),
        "ttft": percentiles([record.first for record in done]),
        "itl": percentiles([gap for record in done for gap in record.gaps]),
        "e2e": percentiles([record.finished - record.began for record in done]),
    }


def rate(records, start, end):
    """Parts per second, which are tokens but for a few that have no text of their own."""
    return sum(1 for record in records for part in record.parts if start <= part < end) / (end - start)


async def closed_loop(server, clients, seconds, questions=itertools.repeat(())):
    """So many clients, each with its next question as soon as it has its answer."""
    records = []
    stop = asyncio.Event()

    async def client():
        while not stop.is_set():
            records.append(record := Record())
            await ask(server, record, *next(questions))

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    warm = 0.25 * seconds
    await asyncio.sleep(warm)
    start = time.monotonic()
    await asyncio.sleep(seconds)
    end = time.monotonic()
    stop.set()
    # Those that are under way come to their end, so that whoever fails is seen.
    await asyncio.gather(*tasks)
    answered = sum(1 for record in records if record.finished and start <= record.finished < end)
    return {"tokensPerSecond": round(rate(records, start, end), 2),
            "requestsPerSecond": round(answered / (end - start), 3), **summary(records)}
