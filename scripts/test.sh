#!/usr/bin/env bash
# Installs what the tests need into .venv and passes them:   bash scripts/test.sh [--all] [pytest arguments]
# --all also runs the tests marked slow (the real language model, minutes of training). SAE_TEST_WORKERS says how many processes share the
# files of tests: one per core up to four, unless given; 0 runs them in this one.
. "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "[test]"
selection=(-m "not slow")
if [ "${1:-}" = "--all" ]; then selection=(); shift; fi
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"$python" -m ruff check .
exec "$python" -m pytest --numprocesses "${SAE_TEST_WORKERS:-auto}" --maxprocesses 4 --dist loadfile --no-loadscope-reorder "${selection[@]}" "$@"
