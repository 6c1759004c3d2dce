#!/usr/bin/env bash
# Other load generators, each in an environment of its own in .peers/, at exactly the versions listed beside this script:
# install.sh [NAME ...], all of them where none is named. Run again, a finished one is left alone.
# PEERS_PYTHON names the Python (3.11; inference-perf needs 3.12, PEERS_PYTHON_312). guidellm imports torch, a CPU build of which is
# enough; where pip finds none by itself, tell it where one is (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL).
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
place="$(cd "$here/../../.." && pwd)/.peers"
python="${PEERS_PYTHON:-$(command -v python3.11 || command -v python3)}"
newer="${PEERS_PYTHON_312:-$(command -v python3.12 || echo "$python")}"

names=("$@")
if [ $# -eq 0 ]; then
    names=()
    for list in "$here"/*.txt; do names+=("$(basename "$list" .txt)"); done
fi
mkdir -p "$place"
for name in "${names[@]}"; do
    list="$here/$name.txt"
    [ -f "$list" ] || { echo "expected one of $(cd "$here" && ls *.txt | sed 's/.txt//' | xargs), got $name" >&2; exit 2; }
    if cmp -s "$list" "$place/$name/installed.txt"; then
        echo "$name: already installed in .peers/$name"
        continue
    fi
    chosen="$python"
    if [ "$name" = inference-perf ]; then chosen="$newer"; fi
    "$chosen" -m venv --clear "$place/$name"
    pip=("$place/$name/bin/python" -m pip --quiet --disable-pip-version-check)
    if [ "$name" = guidellm ]; then "${pip[@]}" install torch==2.13.0; fi
    "${pip[@]}" install --no-deps --requirement "$list"
    cp "$list" "$place/$name/installed.txt"
    echo "$name: installed in .peers/$name, $(du -sh "$place/$name" | cut -f1)"
done
