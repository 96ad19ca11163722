"""Judges the record of a fleet that was rolled at once (e2e/tests/control_plane_fleet.rs), beside plain Deployments.

    fleet.py OUTPUT_OF_THE_TEST RESULTS_FOLDER
"""

import json
import sys

from side_by_side import report

output, results = sys.argv[1:]
PREFIX = "record: "


def main():
    with open(output) as file:
        records = [line.removeprefix(PREFIX) for line in file if line.startswith(PREFIX)]
    if len(records) != 1:
        sys.exit(f"{output} has {len(records)} lines that begin with {PREFIX!r}, expected 1")
    record = json.loads(records[0])
    ours, plain = record["escadre"], record["deployment"]
    pods = record["pods"]
    print(f"{record['deployments']} deployments of {pods} pods on {record['nodes']} nodes without a free GPU")
    print(f"\n{'':44} {'Escadre':>9} {'Deployment':>11}")
    print(f"{'seconds until all serve the second model':44} {ours['seconds']:9.1f} {plain['seconds']:11.1f}")
    print(f"{'fewest ready pods of one of them':44} {ours['leastReady']:9} {plain['leastReady']:11}")
    ratio = ours["seconds"] / plain["seconds"]
    bars = [
        ("fewest ready pods, of 4", f">= {pods - 1}", ours["leastReady"], ours["leastReady"] >= pods - 1),
        ("all rolled, Escadre / plain Deployment", "<= 1.5", ratio, ratio <= 1.5),
    ]
    report("fleet", results, {"kubernetes": record["kubernetes"]}, record, {}, bars)


main()
