# Sourced by the other scripts: where downloads and builds are kept between runs, outside the tree.
cache=${ESCADRE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/escadre}
mkdir -p "$cache"
# A clean clone is built once: what an incremental build would keep for the next one only costs time and disk.
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0
