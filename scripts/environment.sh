# Makes the virtual environment that quickstart.sh and test.sh share, once. Sourced, with the wanted extras as its argument:
#   . scripts/environment.sh ""        the project
#   . scripts/environment.sh "[test]"  the project and what its tests need
# SAE_VENV chooses another place for it than .venv; PYTHON another interpreter than python3.
set -eu
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"
extras="${1:-}"
venv="${SAE_VENV:-$root/.venv}"
if ! "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "Python 3.11 or newer is needed; set PYTHON to one" >&2
    exit 1
fi
stamp="$venv/installed-$(printf '%s %s' "$extras" "$root" | cat - pyproject.toml scripts/constraints.txt | sha256sum | cut -c1-16)"
if [ ! -f "$stamp" ]; then
    echo "installing into $venv (once; a few minutes)"
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    # torch first and alone: anything that depends on it then keeps this build instead of pulling one with several GB of CUDA libraries
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt torch
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e ".$extras"
    case "$extras" in
        *test*) # the parser that exports are tested against; what else it asks for is not needed for that
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -c scripts/constraints.txt sae-dashboard ;;
    esac
    touch "$stamp"
fi
python="$venv/bin/python"
