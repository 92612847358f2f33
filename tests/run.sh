#!/bin/sh
# Install the package with all that its tests need into .venv, and run them. Arguments go to
# pytest. It may be run again at any time, and needs Python 3.11 or later, pip and nothing else.
#
# The tests that open a window do so on a virtual screen (Xvfb). As root on Debian or Ubuntu
# it is installed when missing, with the libraries that Qt needs; elsewhere on Linux the
# script says what to install and stops.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv
libraries="xvfb xauth libegl1 libgl1 libdbus-1-3 libfontconfig1 libglib2.0-0 libxkbcommon-x11-0 \
libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-shape0"

# Without its bytecode, TensorFlow takes three times as long to import.
unset PYTHONDONTWRITEBYTECODE
# Qt's `offscreen` platform has no OpenGL, which napari's canvas needs.
unset QT_QPA_PLATFORM

echo "Installing into $venv (TensorFlow and Qt are large: a few minutes the first time)"
# No ensurepip: Debian keeps it in a package of its own. The pip that is there does as well.
[ -x $venv/bin/python ] || "$python" -m venv --without-pip $venv
"$python" -m pip --python $venv/bin/python install --quiet --editable ".[all,test]"

screen=
if [ "$(uname)" = Linux ]; then
    screen="xvfb-run --auto-servernum"
    qt="from qtpy.QtWidgets import QApplication; QApplication([])"
    if ! $screen $venv/bin/python -c "$qt" >/dev/null 2>&1; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            echo "The tests need a virtual screen and Qt's libraries: apt-get install" $libraries >&2
            exit 1
        fi
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive \
            apt-get install -qq --no-install-recommends $libraries >/dev/null
    fi
fi
$screen $venv/bin/python -m pytest "$@"
