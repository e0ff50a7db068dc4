# Sourced by ./run: finds or installs what everything needs. POSIX sh, as a fresh system has nothing else.

say() { printf '%s\n' "$*"; }
die() { say "run: $1" >&2; exit "${2:-1}"; }
has() { command -v "$1" >/dev/null 2>&1; }
contents() { find "$@" -type f ! -name '*.pyc' | LC_ALL=C sort | xargs cksum | cksum; }

# step NAME KEY COMMAND...: one line on the screen, the output in .run/NAME.log. Skipped while the environment's stamp
# of that name holds KEY; an empty KEY always runs.
step() {
    name=$1 key=$2 ran=0; shift 2
    if [ -n "$key" ] && [ "$key" = "$(cat "$stamps/$name" 2>/dev/null)" ]; then return 0; fi
    mkdir -p .run; ran=1
    printf '[run] %-22s ' "$name"
    begun=$(date +%s)
    set +e # not `if`: that would switch -e off inside the command
    (set -e; "$@") >".run/$name.log" 2>&1
    status=$?
    set -e
    if [ $status -ne 0 ]; then
        say "failed"; tail -n 50 ".run/$name.log" >&2
        die "$name failed with status $status; its whole output is in .run/$name.log"
    fi
    say "$(($(date +%s) - begun)) s"
    if [ -n "$key" ]; then mkdir -p "$stamps" && printf '%s\n' "$key" >"$stamps/$name"; fi
}

# --- what the system must give ---------------------------------------------------------------------------------------
header() {
    printf '#if !__has_include(<%s>)\n#error\n#endif\n' "$1" | "${CXX:-c++}" $include -E -x c++ - >/dev/null 2>&1
}

python_serves() { # PYTHON MODULES
    "$1" -c "import os, sys, sysconfig, $2
header = os.path.join(sysconfig.get_path('include'), 'Python.h')
sys.exit(sys.version_info < (3, 10) or not os.path.exists(header))" >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if python_serves "$candidate" "venv, ensurepip"; then say "$candidate"; return 0; fi
    done
    return 1
}

missing() { # Debian's names of what is not there. Looks for the thing, not the package: brew, conda and pyenv count.
    include="-I/usr/local/include -I/opt/homebrew/include ${CONDA_PREFIX:+-I$CONDA_PREFIX/include}"
    has "${CXX:-c++}" || say g++
    has cmake || say cmake
    has ninja || say ninja-build
    has pkg-config || say pkg-config
    pkg-config --exists 'libzmq >= 4.3' 2>/dev/null || say libzmq3-dev
    pkg-config --exists libsodium 2>/dev/null || say libsodium-dev
    header zmq.hpp || say cppzmq-dev
    header msgpack.hpp || say libmsgpack-cxx-dev
    if [ "$1" = tests ]; then pkg-config --exists gmock gtest 2>/dev/null || say libgtest-dev libgmock-dev; fi
    if [ -x "$env/bin/python" ]; then
        python_serves "$env/bin/python" sys || say python3-dev
    else
        find_python >/dev/null || say python3 python3-venv python3-dev python3-pip
    fi
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y --no-install-recommends "$@" ||
        { apt-get update && apt-get install -y --no-install-recommends "$@"; } # a container's lists may be empty or old
}

system_packages() {
    wanted=$(missing "$1" | tr '\n' ' ')
    [ -n "$wanted" ] || return 0
    if has apt-get && [ "$(id -u)" = 0 ]; then
        step system-packages "" apt_install $wanted
        wanted=$(missing "$1" | tr '\n' ' ')
        [ -n "$wanted" ] || return 0
    fi
    say "run: system packages are missing (Debian's names: ${wanted% }). Install them, then run this again:" >&2
    if has apt-get; then say "  sudo apt-get install -y ${wanted% }" >&2; else cat build_backend/system_packages.txt >&2; fi
    exit 3
}

# --- the Python environment ------------------------------------------------------------------------------------------
setup() { # tests: with what the C++ tests need
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        env=$VIRTUAL_ENV
        [ -x "$env/bin/python" ] || die "VIRTUAL_ENV is $env, which has no bin/python: unset it, or activate another"
    elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then env=$CONDA_PREFIX
    else env=$PWD/.venv${PYTHON:+-${PYTHON##*/}}; fi
    stamps=$env/.learning_at_home
    system_packages "${1:-}"
    python=$env/bin/python
    [ -x "$python" ] || step environment "" "$(find_python)" -m venv "$env"
    "$python" -m pip --version >/dev/null 2>&1 || step pip "" "$python" -m ensurepip --upgrade
    PATH=$env/bin:$PATH; export PATH PIP_DISABLE_PIP_VERSION_CHECK=1

    if [ -z "$("$python" -I build_backend/find_torch.py)" ]; then
        step torch "" "$python" -m pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
    fi
    torch=$("$python" -I -c "import importlib.metadata as m; print(m.version('torch').split('+')[0])")
    mkdir -p .run && say "torch==$torch" >.run/constraints.txt # nothing below may fetch another
    cmake_version=$(cmake --version | sed -n '1s/[^0-9]*\([0-9]*\)\.\([0-9]*\).*/\1 * 100 + \2/p')
    [ $(($cmake_version)) -ge 325 ] && newer_cmake= || newer_cmake='cmake>=3.25'
    step build-tools "1 $newer_cmake" pip_install 'scikit-build-core>=0.11' 'pybind11>=2.13' $newer_cmake
    key="$PWD $torch $("$python" -V) ${CMAKE_ARGS:-} $(command -v nvcc || say no nvcc)
$(contents csrc cmake CMakeLists.txt build_backend pyproject.toml)"
    step package "$key" package
    [ $ran = 0 ] || sed -n 's/^ *-- learning_at_home: /      /p' .run/package.log # CPU-only, or which GPUs
}

pip_install() { "$python" -m pip install -c .run/constraints.txt "$@"; }

package() { # a build folder per Python makes the next build incremental
    export SKBUILD_BUILD_DIR='build/{wheel_tag}'
    pip_install -v --no-build-isolation -e '.[demo,test]'
}
