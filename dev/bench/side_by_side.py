"""What benchmarks have in common: the report of bars that is printed and kept, and, for those against a plain Deployment,
the peer that is made of the operator's own pod."""

import datetime
import json
import os
import platform
import subprocess

PLAIN = "app=plain"


def plain(pod, name, **deployment):
    """The operator's own pod, as a Deployment and a Service of other tools; `deployment` are further fields of its spec."""
    spec = pod["spec"]
    for field in ("nodeName", "serviceAccount", "hostname", "subdomain", "priority", "preemptionPolicy"):
        spec.pop(field, None)
    spec["tolerations"] = []
    key, value = PLAIN.split("=")
    labels = {key: value}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
         "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": "http"}]}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
         "spec": {**deployment, "selector": {"matchLabels": labels},
                  "template": {"metadata": {"labels": labels}, "spec": spec}}}]


def manifests(things):
    return "\n---\n".join(map(json.dumps, things))


def report(name, results, versions, rounds, median, bars):
    """Prints the bars (name, wanted, measured, whether it is met) and keeps everything in a dated file."""
    print(f"\n{'bar':44} {'wanted':>8} {'measured':>9}")
    for bar, wanted, measured, met in bars:
        print(f"{bar:44} {wanted:>8} {measured:9.2f}  {'met' if met else 'missed'}")
    with open("/proc/cpuinfo") as file:
        cpu = dict(map(str.strip, line.split(":", 1)) for line in file if ":" in line)
    flags = [flag for flag in cpu.get("flags", "").split() if flag.startswith(("avx", "fma", "f16c", "amx"))]
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": cpu.get("model name", "unknown"), "flags": flags, "cores": os.cpu_count(),
                    "kernel": platform.release()},
        "versions": {**versions, "escadre": subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()},
        "rounds": rounds,
        "median": median,
        "bars": [{"bar": b[0], "wanted": b[1], "measured": round(b[2], 3), "met": b[3]} for b in bars],
    }
    path = os.path.join(results, f"{name}-{record['date']}.json")
    with open(path, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    print(f"\nkept in {path}")
    met = sum(bar[3] for bar in bars)
    print(f"{met} met, {len(bars) - met} missed")
