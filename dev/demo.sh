#!/usr/bin/env bash
# Shows the whole way from nothing to a streamed answer: a real Kubernetes on this machine, the chart, one manifest,
# a real model. Running it again changes nothing that is already there.
#
#   dev/demo.sh [CLUSTER]              on a cluster of the test bed (default: demo)
#   CONTEXT=NAME dev/demo.sh           on the cluster of that kubectl context, which must be able to pull
#                                      OPERATOR_IMAGE and RUNTIME_IMAGE (repository:tag) and reach the model hub;
#                                      MANIFEST=FILE applies another manifest of the name smollm2
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

cluster=${1:-demo}
context=${CONTEXT:-}
port=${DEMO_PORT:-8000}
testbed=target/debug/escadre-testbed
namespace=escadre-demo
name=smollm2

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '$ %s\n' "$*"; inside "$@"; }
inside() {
  if [ -n "$context" ]; then
    "$testbed" exec --context "$context" -- "$@"
  else
    "$testbed" exec --name "$cluster" -- "$@"
  fi
}

say "programs"
dev/prerequisites.sh
dev/models.sh
dev/clients.sh
echo "building Escadre (the first time takes several minutes)"
dev/build.sh

values=()
if [ -n "$context" ]; then
  manifest=${MANIFEST:-examples/smollm2-135m.yaml}
  for part in operator runtime; do
    variable=${part^^}_IMAGE
    image=${!variable:?set OPERATOR_IMAGE and RUNTIME_IMAGE to images that the cluster can pull, as repository:tag}
    values+=(--set "$part.image.repository=${image%:*}" --set "$part.image.tag=${image##*:}")
  done
else
  manifest=examples/demo/smollm2.yaml
  say "cluster $cluster"
  "$testbed" up --name "$cluster"
  say "images"
  for part in operator runtime; do
    # The tag names the content, so that a changed program is a changed image.
    tag=0.1.0-$(sha256sum "target/debug/escadre-$part" | cut -c1-12)
    "$testbed" load-image --name "$cluster" "escadre.dev/$part:$tag" --binary "target/debug/escadre-$part"
    values+=(--set "$part.image.tag=$tag")
  done
fi

say "Escadre, by its chart"
show helm upgrade --install escadre charts/escadre --namespace escadre-system --create-namespace --wait --timeout 3m \
  "${values[@]}" --output json >/dev/null
show kubectl get pods --namespace escadre-system

say "a model, by one manifest"
inside kubectl create namespace "$namespace" --dry-run=client -o yaml | inside kubectl apply -f - >/dev/null
if [ -z "$context" ]; then
  # Stands in for the model hub, which this cluster cannot reach: a server on the node's address, behind a Service.
  folder=$cache/mirror/HuggingFaceTB/SmolLM2-135M-Instruct-GGUF
  mkdir -p "$folder"
  ln -f "$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf" "$folder/" 2>/dev/null ||
    cp "$cache/models/SmolLM2-135M-Instruct.Q4_1.gguf" "$folder/"
  address=$("$testbed" mirror --name "$cluster" --root "$cache/mirror")
  address=${address#http://}
  inside kubectl apply --namespace "$namespace" -f - >/dev/null <<MIRROR
apiVersion: v1
kind: Service
metadata: {name: mirror}
spec: {ports: [{name: http, port: 8000}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mirror, labels: {kubernetes.io/service-name: mirror}}
addressType: IPv4
ports: [{name: http, port: ${address##*:}}]
endpoints: [{addresses: [${address%:*}]}]
MIRROR
fi
cat "$manifest"
show kubectl apply --namespace "$namespace" -f "$manifest"
show kubectl wait --namespace "$namespace" --for=condition=Ready "llm/$name" --timeout=10m

say "an answer, streamed through the Service"
if [ -n "$context" ]; then
  inside kubectl port-forward --namespace "$namespace" "svc/$name" "$port:80" >/dev/null &
  trap 'kill $!' EXIT
else
  "$testbed" forward --name "$cluster" --as model --listen "127.0.0.1:$port" "svc/$namespace/$name:80" >/dev/null
fi
"$cache/clients/python/bin/python" dev/ask.py "http://127.0.0.1:$port/v1" "$name" "What is a fleet of ships called? Answer in one sentence."

say "what the resource says"
show kubectl get llm --namespace "$namespace"
inside kubectl get llm --namespace "$namespace" "$name" \
  -o 'jsonpath={range .status.conditions[*]}{.type}={.status}{"\t"}{.message}{"\n"}{end}served digest{"\t"}{.status.servedDigest}{"\n"}'

say "next"
if [ -z "$context" ]; then
  cat <<NEXT
curl -N http://127.0.0.1:$port/v1/chat/completions -H 'Content-Type: application/json' -d '{"model": "$name", "stream": true, "messages": [{"role": "user", "content": "Hello!"}]}'
make cluster-exec CMD='kubectl scale llm/$name --replicas=2 -n $namespace && kubectl get llm,pods -n $namespace'
make demo-down
NEXT
fi
