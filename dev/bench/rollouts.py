"""Measures what a model update costs those who ask meanwhile, and how long it takes.

The peer is a plain apps/v1 Deployment with the very pods that the operator builds, rolled out by kube-controller-manager
in the same run on the same node, with a preStop sleep as its users write it. Both are asked through their Service by the
same traffic (e2e/clients/traffic.py) from inside the cluster's network.

    rollouts.py TESTBED CLUSTER NAMESPACE MANIFEST PYTHON RESULTS_FOLDER

PYTHON has the OpenAI client.
"""

import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from side_by_side import PLAIN, manifests, plain, report

testbed, cluster, namespace, manifest, python, results = sys.argv[1:]
ROUNDS = 3
WORKERS = 10
DEADLINE = 400
NAME = "smollm2"
OURS = f"escadre.dev/deployment={NAME}"
FIRST = {
    "source": "hf://HuggingFaceTB/SmolLM2-135M-Instruct-GGUF",
    "files": ["SmolLM2-135M-Instruct.Q4_1.gguf"],
    "verification": {"digest": "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
}
SECOND = {
    "source": "hf://HuggingFaceTB/SmolLM2-135M-Instruct-Q8-GGUF",
    "files": ["SmolLM2-135M-Instruct.Q8_0-1.gguf"],
    "verification": {"digest": "sha256:0c1d3326cd9793cfb7296113c063dd5c24e2bd734b48ec1a3d01b7158eca9387"},
}
# The same for both.
REPLICAS, MIN_READY_SECONDS, DRAIN_SECONDS, CONCURRENCY = 2, 2, 120, 8


def kubectl(*arguments, text=None):
    command = [testbed, "exec", "--name", cluster, "--", "kubectl", "-n", namespace, *arguments]
    run = subprocess.run(command, input=text, capture_output=True, text=True)
    if run.returncode != 0:
        sys.exit(f"kubectl {' '.join(arguments)}: {run.stderr}")
    return run.stdout


class Traffic:
    def __init__(self):
        address = kubectl("get", "service", NAME, "-o", "jsonpath={.spec.clusterIP}")
        self.records = tempfile.NamedTemporaryFile(prefix="escadre-traffic-", suffix=".jsonl")
        self.process = subprocess.Popen(
            [testbed, "exec", "--name", cluster, "--", python, "e2e/clients/traffic.py", f"http://{address}/v1", NAME,
             self.records.name, str(WORKERS)], stdout=subprocess.PIPE, text=True)
        if self.process.stdout.readline().strip() != "flowing":
            sys.exit("no request was answered")

    def stop(self):
        """The summary and the records."""
        self.process.send_signal(signal.SIGTERM)
        summary = json.loads(self.process.stdout.readline())
        self.process.wait()
        with open(self.records.name) as file:
            return summary, [json.loads(line) for line in file]


def pods(selector):
    return json.loads(kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]


def await_ready(selector, spec):
    """All of this spec's kind that there shall be, and nothing else, not even on its way out."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        there = pods(selector)
        if len(there) == REPLICAS and all(is_ready(pod) and spec in json.dumps(pod["spec"]) for pod in there):
            return
        time.sleep(0.5)
    sys.exit(f"the rollout did not end within {DEADLINE} s")


def is_ready(pod):
    conditions = pod["status"].get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def ours(model):
    """The manifest of the demo with what both have in common, as a list of what to apply."""
    thing = json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", text=open(manifest).read()))
    spec = thing["spec"]
    spec["model"].update(model)
    spec["replicas"] = REPLICAS
    spec.setdefault("runtime", {})["maxConcurrency"] = CONCURRENCY
    spec["drain"] = {"timeoutSeconds": DRAIN_SECONDS}
    spec["rollout"] = {"minReadySeconds": MIN_READY_SECONDS}
    return [thing]


def plain_deployment(pod):
    spec = pod["spec"]
    spec["containers"][0]["lifecycle"] = {"preStop": {"sleep": {"seconds": 5}}}
    spec["terminationGracePeriodSeconds"] += 5
    return plain(pod, NAME, replicas=REPLICAS, minReadySeconds=MIN_READY_SECONDS, strategy={"type": "RollingUpdate"})


def apply(things):
    kubectl("apply", "-f", "-", text=manifests(things))


def remove(things, selector):
    kubectl("delete", "-f", "-", "--wait=true", text=manifests(things))
    kubectl("wait", "--for=delete", "pods", "-l", selector, f"--timeout={DEADLINE}s")


def one_round(first, second, selector):
    """Serves the first model, updates to the second under traffic. Returns what it cost."""
    apply(first)
    await_ready(selector, FIRST["verification"]["digest"])
    traffic = Traffic()
    time.sleep(10)
    start = time.time()
    apply(second)
    await_ready(selector, SECOND["verification"]["digest"])
    time.sleep(5)
    summary, records = traffic.stop()
    remove(second, selector)
    old = FIRST["verification"]["digest"].removeprefix("sha256:")[:12]
    last = max(record["ended"] for record in records if old in (record["fingerprint"] or ""))
    return {"seconds": last - start, **summary}


def main():
    # The pods of both revisions, as the operator builds them.
    template = {}
    for key, model in (("first", FIRST), ("second", SECOND)):
        apply(ours(model))
        await_ready(OURS, model["verification"]["digest"])
        template[key] = plain_deployment(pods(OURS)[0])
    remove(ours(SECOND), OURS)
    version = json.loads(kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]

    rounds = {"escadre": [], "deployment": []}
    for number in range(ROUNDS):
        for kind, first, second, selector in (
            ("escadre", ours(FIRST), ours(SECOND), OURS),
            ("deployment", template["first"], template["second"], PLAIN),
        ):
            one = one_round(first, second, selector)
            rounds[kind].append(one)
            print(f"round {number + 1} of {ROUNDS}, {kind}: {one['requests']} requests, {one['failed']} failed, "
                  f"{one['cut']} of them cut, the new model alone after {one['seconds']:.1f} s, "
                  f"at least {one['openStreams']['least']} streams open", flush=True)

    median = {kind: statistics.median(one["seconds"] for one in of) for kind, of in rounds.items()}
    lost = {kind: sum(one["failed"] for one in of) for kind, of in rounds.items()}
    asked = {kind: sum(one["requests"] for one in of) for kind, of in rounds.items()}
    print(f"\n{'in all rounds':44} {'Escadre':>9} {'Deployment':>11}")
    print(f"{'requests':44} {asked['escadre']:9} {asked['deployment']:11}")
    print(f"{'failed or cut':44} {lost['escadre']:9} {lost['deployment']:11}")
    print(f"{'seconds until the new model alone serves':44} {median['escadre']:9.1f} {median['deployment']:11.1f}")
    ratio = median["escadre"] / median["deployment"]
    bars = [
        ("requests failed or cut, Escadre", "0", lost["escadre"], lost["escadre"] == 0),
        ("new model alone, Escadre / plain Deployment", "<= 1.5", ratio, ratio <= 1.5),
    ]
    report("rollouts", results, {"kubernetes": version}, rounds, median, bars)


main()
