# Sourced by the scripts beside it: sets `root` and `python`, and `set_up` makes root/.venv ready.
# Nothing is installed again until pyproject.toml, constraints.txt or the place of the tree changes.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

_find_python() {
    local name found=""
    for name in python3.11 python3.12 python3 python; do
        # Run it: a version manager leaves names on PATH that stand for no Python.
        if "$name" -c "$new_enough" </dev/null >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
        [ -n "$found" ] || found=$("$name" --version 2>/dev/null </dev/null) || true
    done
    echo "ltlearn needs Python 3.11 or newer on PATH; found ${found:-no Python}." >&2
    return 1
}

_find_uv() {
    if command -v uv; then
        return
    fi
    if [ ! -x "$venv/bin/uv" ]; then
        "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 || return 0
        "$python" -m pip install --quiet --disable-pip-version-check uv >/dev/null 2>&1 || return 0
    fi
    echo "$venv/bin/uv"
}

_install() {
    local uv
    uv=$(_find_uv)
    if [ -n "$uv" ]; then
        # The system's certificates, as pip can be told to use them (the second name is for uv before 0.11).
        UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1 \
            "$uv" pip install --quiet --python "$python" -e ".[dev]" -c constraints.txt && return
        echo "uv could not install; trying pip, which has settings of its own." >&2
    fi
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null
    "$python" -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        -e ".[dev]" -c constraints.txt
}

set_up() {
    local stamp=$venv/.ltlearn-stamp wanted base
    # The place counts: a copied tree has a copied .venv that would import the original.
    wanted=$(cd "$root" && { echo "$root"; cat pyproject.toml constraints.txt; } | cksum)
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && [ -x "$python" ]; then
        return
    fi
    if ! "$python" -c "$new_enough" </dev/null >/dev/null 2>&1; then
        base=$(_find_python)
        echo "Making $venv ..." >&2
        # Some systems ship `venv` without pip; uv then does without.
        if ! "$base" -m venv --clear "$venv" </dev/null >/dev/null 2>&1; then
            if ! command -v uv >/dev/null || ! uv venv --quiet --clear --python "$base" "$venv"; then
                echo "$base cannot make a virtual environment: install its venv module, or uv." >&2
                return 1
            fi
        fi
    fi
    echo "Installing ltlearn and what it needs into $venv (once; some minutes and 6 GB) ..." >&2
    rm -f "$stamp"
    (cd "$root" && _install </dev/null)
    echo "$wanted" >"$stamp"
}
