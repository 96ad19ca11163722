#!/usr/bin/env bash
# Makes sure that the programs and libraries of the builds are there: installs Debian packages as root,
# or says the exact command.
set -euo pipefail

packages=()
need() { # need PROGRAM PACKAGE
  command -v "$1" >/dev/null || packages+=("$2")
}
need gcc build-essential
need make build-essential
need pkg-config pkg-config
need git git
need curl curl
need ip iproute2
need nsenter util-linux
need iptables iptables
need conntrack conntrack
need python3 python3
need unzip unzip
need openssl openssl
[ -e /usr/include/seccomp.h ] || packages+=(libseccomp-dev)
python3 -c 'import ensurepip' 2>/dev/null || packages+=(python3-venv)
python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)

if [ ${#packages[@]} -gt 0 ]; then
  mapfile -t packages < <(printf '%s\n' "${packages[@]}" | sort -u)
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "error: missing system packages; run: sudo apt-get install -y ${packages[*]}" >&2
    exit 1
  fi
  echo "installing system packages: ${packages[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi

if ! command -v cargo >/dev/null; then
  echo "error: no Rust toolchain; install rustup (see its site), then run the same command again: rust-toolchain.toml names the version" >&2
  exit 1
fi
