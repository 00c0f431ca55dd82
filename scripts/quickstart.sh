#!/usr/bin/env bash
# The whole path once, on the default model and the shipped text; ends with a report and serves it on 127.0.0.1:
#   bash scripts/quickstart.sh [--fast] [--no-serve] [other options of scripts/quickstart.py]
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" ""
exec "$python" scripts/quickstart.py "$@"
