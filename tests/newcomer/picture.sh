#!/usr/bin/env bash
# The README's picture of a page: picture.sh PAGE.html makes docs/page.png, with Chromium and Pillow (which comes with matplotlib).
set -euo pipefail
top="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
page="$(realpath "$1")"
raw="$(mktemp --suffix=.png)"
trap 'rm -f "$raw"' EXIT
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1 --window-size=1240,1000 \
    --screenshot="$raw" "file://$page" 2>/dev/null
"$top/.venv/bin/python" - "$raw" "$top/docs/page.png" <<'END'
import sys

from PIL import Image

page = Image.open(sys.argv[1]).convert("RGB").crop((0, 0, 1240, 935))
page = page.resize((1116, 842), Image.Resampling.LANCZOS).quantize(48, dither=Image.Dither.NONE)
page.save(sys.argv[2], optimize=True)
END
ls -l "$top/docs/page.png"
