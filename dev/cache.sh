# Sourced by the other scripts: where downloads and builds are kept between runs, outside the tree.
cache=${ESCADRE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/escadre}
mkdir -p "$cache"
