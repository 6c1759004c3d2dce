#!/usr/bin/env bash
# As a stranger would: the wheel into an empty environment, outside any checkout, for each Python named.
#
#     tests/newcomer/try_wheel.sh python3.11 python3.12 python3.13
#
# Then with the installed commands alone: doctor, init, a copied scenario under plain Locust, its page, and the whole demo.
# TRY_DEMO=no leaves the demo out (75 s for each Python). Ends with one line for each Python; for 3.14 only the wheels of all
# that it needs are looked up.
set -euo pipefail

top="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
place="$(mktemp -d)"
server=""
trap '[ -z "$server" ] || kill "$server"; rm -rf "$place"' EXIT

python3 -m venv "$place/builder"
"$place/builder/bin/python" -m pip wheel --quiet --no-deps --wheel-dir "$place/dist" "$top"

python3 -m pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --target "$place/newest" \
    --only-binary :all: --python-version 3.14 --constraint "$top/requirements.lock" "$place"/dist/*.whl
echo "Python 3.14: every dependency has a wheel; nothing was run"

for python in "${@:-python3}"; do
    began=$SECONDS
    home="$place/$(basename "$python")"
    mkdir "$home"
    cd "$home"
    "$python" -m venv environment
    environment/bin/python -m pip install --quiet --disable-pip-version-check --constraint "$top/requirements.lock" "$place"/dist/*.whl
    PATH="$home/environment/bin:$PATH"
    installed=$((SECONDS - began))

    loadtest doctor > doctor.txt
    loadtest init mine > init.txt
    for file in scenarios/long_reasoning.py scenarios/studies/demo.toml launchers/vllm reports/templates/page.html.j2; do
        [ -e "mine/$file" ] || { echo "$python: init did not copy $file" >&2; exit 1; }
    done
    [ -x mine/launchers/vllm ] || { echo "$python: a launcher that cannot be run" >&2; exit 1; }
    loadtest run mine/scenarios/studies/qwq-32b-ada.toml --dry-run > plan.txt

    port="$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
    python -m loadtest.simulator --engine vllm-sim --model qwq-32b-awq --tp 1 --gpu l20 --port "$port" --clock-speed 50 > simulator.log 2>&1 &
    server=$!
    for _ in $(seq 100); do grep -q . simulator.log && break; sleep 0.1; done
    timeout 120 locust -f mine/scenarios/long_reasoning.py --headless -u 2 -r 2 --requests 4 --host "http://127.0.0.1:$port" --out runs/mine > locust.log 2>&1
    kill "$server"; wait "$server" || true; server=""
    loadtest report runs/mine > report.txt
    [ -s runs/mine/report.html ] || { echo "$python: no page" >&2; exit 1; }

    demo="left out"
    if [ "${TRY_DEMO:-yes}" = yes ]; then
        started=$SECONDS
        loadtest demo --out runs/demo > demo.txt 2>&1 || { tail -5 demo.txt >&2; exit 1; }
        [ -s runs/demo/report.html ]
        demo="$((SECONDS - started)) s"
    fi
    echo "$("$python" --version): installed in $installed s ($(du -sm environment | cut -f1) MB); doctor, init, dry run, Locust, report: ok; demo: $demo"
    PATH="${PATH#*:}"
    cd "$top"
done
