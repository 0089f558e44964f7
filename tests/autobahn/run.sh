#!/usr/bin/env bash
# Runs the client against Autobahn's fuzzing server and writes the verdict on every case to verdicts.txt beside this file.
# Usage: tests/autobahn/run.sh [WSTEST]     WSTEST is the suite's program; by default the one in PATH.
# Sections 12 and 13 (permessage-deflate) are left out. Exits 1 if a verdict is neither OK nor INFORMATIONAL.
set -euo pipefail
cd "$(dirname "$0")/../.."
wstest=${1:-wstest}
command -v "$wstest" >/dev/null || { echo "no $wstest: install autobahntestsuite and name its wstest" >&2; exit 2; }
cargo build --quiet --release --example autobahn_client

work=$(mktemp -d)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat > "$work/spec.json" <<JSON
{"url": "ws://127.0.0.1:$port", "outdir": "$work/reports", "cases": ["*"], "exclude-cases": ["12.*", "13.*"], "exclude-agent-cases": {}}
JSON
"$wstest" -m fuzzingserver -s "$work/spec.json" > "$work/server.log" 2>&1 &
trap 'kill %1 2>/dev/null; rm -rf "$work"' EXIT
until (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
  kill -0 %1 2>/dev/null || { cat "$work/server.log" >&2; exit 2; }
  sleep 0.1
done
timeout 900 "${CARGO_TARGET_DIR:-target}/release/examples/autobahn_client" "ws://127.0.0.1:$port"

python3 - "$work/reports/index.json" tests/autobahn/verdicts.txt <<'PYTHON'
import json, sys

index, table = sys.argv[1:]
(cases,) = json.load(open(index)).values()
order = sorted(cases, key=lambda case: [int(part) for part in case.split(".")])
verdicts = {case: (cases[case]["behavior"], cases[case]["behaviorClose"]) for case in order}
with open(table, "w") as out:
    out.write("# Autobahn TestSuite, client role, sections 1-10: case, behaviour, close. Written by run.sh.\n")
    out.writelines(f"{case:8} {behaviour:14} {close}\n" for case, (behaviour, close) in verdicts.items())
bad = [case for case, pair in verdicts.items() if not set(pair) <= {"OK", "INFORMATIONAL"}]
print(f"{len(verdicts)} cases, not OK: {' '.join(bad) or 'none'}")
sys.exit(1 if bad or not verdicts else 0)
PYTHON
