#!/usr/bin/env bash
# usage: tests/sanitize.sh PYTHON COMPILER [PYTEST ARGUMENTS]
# Builds the engine with AddressSanitizer and UndefinedBehaviorSanitizer into an environment of its own under build/,
# which sees the packages that PYTHON sees, and runs the kernel tests (or what the arguments say) in it.
set -euo pipefail
python=$(realpath -s "$1") compiler=$2
shift 2
cd "$(dirname "$0")/.."
environment=build/sanitize/$compiler
interpreter=$environment/venv/bin/python

"$python" -m venv --without-pip "$environment/venv"
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -c "$packages" > "$("$interpreter" -c "$packages")/packages.pth"
CXX=$compiler "$python" -m pip --python "$interpreter" install --quiet --no-build-isolation --no-deps \
  -C build-dir="$environment/build" -C cmake.define.TRIMTAB_SANITIZE=address .

# Python is not sanitized itself: the run-time libraries must be there before it.
case $compiler in
  *clang*) runtime=libclang_rt.asan-$(uname -m).so ;;
  *) runtime=libasan.so ;;
esac
preload="$("$compiler" -print-file-name="$runtime") $("$compiler" -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
LD_PRELOAD=$preload "$interpreter" -m pytest -q --capture=sys "${@:-tests/kernels}"
