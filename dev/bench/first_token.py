"""Measures the time from `kubectl apply` to the first token, and its parts, on a warm node.

The peer is a plain apps/v1 Deployment with the very pod that the operator builds, made by kube-controller-manager in the
same run: the ratio is what Escadre's own steps (reconcile, revision, digest check by status) cost.

    first_token.py TESTBED CLUSTER NAMESPACE MANIFEST RESULTS_FOLDER
"""

import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request

from side_by_side import PLAIN, manifests, plain, report

testbed, cluster, namespace, manifest, results = sys.argv[1:]
ROUNDS = 5
DEADLINE = 180
BODY = {"model": "smollm2", "stream": True, "max_tokens": 1, "messages": [{"role": "user", "content": "Hello!"}]}


def inside(*command, **options):
    return [testbed, "exec", "--name", cluster, "--", *command]


def kubectl(*arguments, text=None):
    run = subprocess.run(inside("kubectl", "-n", namespace, *arguments), input=text, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"kubectl {' '.join(arguments)}: {run.stderr}")
    return run.stdout


class Watch:
    """Stamps every line that a kubectl watch prints with the time it came."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            inside("kubectl", "-n", namespace, "get", *arguments, "--watch", "--output-watch-events", "-o", "json"),
            stdout=subprocess.PIPE, text=True)
        self.seen = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        decoder, buffer = json.JSONDecoder(), ""
        for line in self.process.stdout:
            buffer += line
            try:
                event, end = decoder.raw_decode(buffer)
            except json.JSONDecodeError:
                continue
            buffer = buffer[end:].lstrip()
            self.seen.append((time.monotonic(), event["object"]))

    def first(self, condition):
        return next((at for at, thing in self.seen if condition(thing)), None)

    def stop(self):
        self.process.kill()
        self.process.wait()


def condition(kind):
    return lambda thing: any(
        c["type"] == kind and c["status"] == "True" for c in thing.get("status", {}).get("conditions", []))


def first_token(port, start):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(BODY).encode(), {"Content-Type": "application/json"})
    while time.monotonic() - start < DEADLINE:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                for line in answer:
                    if line.startswith(b"data: ") and b'"content"' in line:
                        return time.monotonic()
        except OSError:
            time.sleep(0.02)
    sys.exit("no token before the deadline")


def one_round(kind, text, selector):
    """Applies, waits for the first token, deletes. Returns seconds since the apply for each part."""
    watch = Watch("pods", "-l", selector)
    time.sleep(1)  # the watch must stand before the apply
    start = time.monotonic()
    kubectl("apply", "-f", "-", text=text)
    port = subprocess.run(
        [testbed, "forward", "--name", cluster, "--as", "bench", f"svc/{namespace}/smollm2:80"],
        capture_output=True, text=True, check=True).stdout.strip().rsplit(":", 1)[1]
    token = first_token(port, start)
    if kind == "LlmDeployment":
        kubectl("wait", "--for=condition=Ready", "llm/smollm2", f"--timeout={DEADLINE}s")
    parts = {
        "pod created": watch.first(lambda pod: True),
        "scheduled": watch.first(condition("PodScheduled")),
        "fetched": watch.first(condition("Initialized")),
        "pod ready": watch.first(condition("Ready")),
        "first token": token,
    }
    watch.stop()
    kubectl("delete", "-f", "-", "--wait=true", text=text)
    kubectl("wait", "--for=delete", "pods", "-l", selector, f"--timeout={DEADLINE}s")
    return {part: at - start for part, at in parts.items() if at is not None}


def plain_deployment(pod):
    # Ends at once: the drain is not what is measured.
    pod["spec"]["terminationGracePeriodSeconds"] = 1
    return manifests(plain(pod, "smollm2"))


def main():
    text = open(manifest).read()
    selector = "escadre.dev/deployment=smollm2"
    kubectl("apply", "-f", "-", text=text)
    kubectl("wait", "--for=condition=Ready", "llm/smollm2", f"--timeout={DEADLINE}s")
    pod = json.loads(kubectl("get", "pods", "-l", selector, "-o", "json"))["items"][0]
    version = json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    peer_manifest = plain_deployment(pod)
    kubectl("delete", "-f", "-", "--wait=true", text=text)
    kubectl("wait", "--for=delete", "pods", "-l", selector, f"--timeout={DEADLINE}s")

    ours, peer = [], []
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", flush=True)
        ours.append(one_round("LlmDeployment", text, selector))
        peer.append(one_round("Deployment", peer_manifest, PLAIN))

    medians = [{part: statistics.median(r[part] for r in rounds if part in r) for part in ours[0]}
               for rounds in (ours, peer)]
    print(f"\n{'seconds after apply (median)':30} {'Escadre':>9} {'Deployment':>11}")
    for part in medians[0]:
        print(f"{part:30} {medians[0][part]:9.2f} {medians[1][part]:11.2f}")
    ratio = medians[0]["first token"] / medians[1]["first token"]
    bars = [("first token, Escadre / plain Deployment", "<= 1.15", ratio, ratio <= 1.15)]
    report("first-token", results, {"kubernetes": version}, {"escadre": ours, "deployment": peer},
           {"escadre": medians[0], "deployment": medians[1]}, bars)


main()
