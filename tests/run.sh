#!/bin/sh
# Install the package with all that its tests need into .venv, and run them. Arguments go to
# pytest. It may be run again at any time, and needs Python 3.11 or later and pip, no screen.
#
# Qt needs some system libraries on Linux. As root on Debian or Ubuntu they are installed when
# one is missing; elsewhere the script says which they are and stops.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv

# Without its bytecode, TensorFlow takes three times as long to import.
unset PYTHONDONTWRITEBYTECODE
# Windows stay invisible, and without OpenGL: Mesa's LLVM and TensorFlow's crash in one process.
export QT_QPA_PLATFORM=offscreen QT_QPA_OFFSCREEN_NO_GLX=1

echo "Installing into $venv (TensorFlow and Qt are large: a few minutes the first time)"
# No ensurepip: Debian keeps it in a package of its own. The pip that is there does as well.
[ -x $venv/bin/python ] || "$python" -m venv --without-pip $venv
"$python" -m pip --python $venv/bin/python install --quiet --editable ".[all,test]"

qt="from qtpy.QtWidgets import QApplication; import OpenGL.GL; QApplication([])"
if ! $venv/bin/python -c "$qt" >/dev/null 2>&1; then
    libraries=$(tr '\n' ' ' <tests/apt-packages.txt)
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "The tests need Qt's system libraries: apt-get install $libraries" >&2
        exit 1
    fi
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq --no-install-recommends $libraries >/dev/null
fi
# Two processes: each loads TensorFlow once. `-m "not slow"` leaves out what takes long.
exec $venv/bin/python -m pytest -n 2 --dist worksteal "$@"
