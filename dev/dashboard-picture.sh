#!/usr/bin/env bash
# Draws docs/images/dashboard.png: the panels of both dashboards with what a Prometheus inside a cluster of the test bed
# answers to their queries. Prometheus must run there already, with the jobs of docs/guides/monitoring.md.
#
#   dev/dashboard-picture.sh CLUSTER URL NAMESPACE/DEPLOYMENT [MINUTES]
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

cluster=${1:?the name of a cluster of the test bed}
url=${2:?the address of Prometheus inside it, such as http://10.99.0.1:9090}
deployment=${3:?the deployment to show, as NAMESPACE/NAME}
version=3.11.2
environment=$cache/picture-$version
if [ ! -f "$environment/done" ]; then
  echo "installing matplotlib $version"
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet --disable-pip-version-check "matplotlib==$version"
  touch "$environment/done"
fi
"${TESTBED:-target/debug/escadre-testbed}" exec --name "$cluster" -- "$environment/bin/python" dev/dashboard_picture.py \
  "$url" "$deployment" "${4:-10}" docs/images/dashboard.png
