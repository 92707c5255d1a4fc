#!/usr/bin/env bash
# The tests of the C++ kernels on 64-bit Arm, in an emulator: compiled here, run by qemu-user under Arm's own Python and
# torch. Debian or Ubuntu on x86, as root (apt fetches compiler, emulator and Arm's libraries), with network. Arguments
# are pytest's; FOLDER keeps what was fetched.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${FOLDER:-$(mktemp -d)}
tests=(test_cpp_ops.py test_cpp_clip_step.py test_cpp_bits.py test_head_loss.py test_packed_attention.py test_reference.py)
# The last torch whose package for Arm is for the processor alone, and what it imports.
packages=(torch==2.9.1 numpy typing-extensions sympy mpmath networkx jinja2 markupsafe filelock fsspec
  pytest pluggy iniconfig packaging pygments hypothesis sortedcontainers)

apt-get update -q
apt-get install -y -q qemu-user-static g++-aarch64-linux-gnu apt-utils
dpkg --add-architecture arm64
apt-get update -q
python=$(apt-cache depends python3-minimal | sed -n 's/.*Depends: \(python3\.[0-9]*\)-minimal.*/\1/p' | head -1)
mkdir -p "$folder/debs/partial" "$folder/arm" "$folder/objects"
: > "$folder/nothing-installed"
apt-get install -y -q --download-only -o APT::Architecture=arm64 -o APT::Architectures::=arm64 \
  -o Dir::State::status="$folder/nothing-installed" -o Dir::Cache::archives="$folder/debs" --no-install-recommends \
  "$python" "lib$python-dev" libgomp1 libstdc++6
for deb in "$folder"/debs/*.deb; do dpkg -x "$deb" "$folder/arm"; done

pip=("${PIP:-$root/.venv/bin/pip}" --disable-pip-version-check install --quiet --upgrade --no-deps)
"${pip[@]}" --target "$folder/site" --only-binary=:all: --python-version "${python#python}" \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
  -c <(grep -v "^torch=" "$root/constraints.txt") "${packages[@]}"
"${pip[@]}" --target "$folder/site" pybind11

flags=(-std=c++17 -O3 -fopenmp -fno-math-errno -ffp-contract=off -Wall -Wno-psabi -fPIC -fvisibility=hidden)
includes=(-I"$folder/site/pybind11/include" -I"$folder/arm/usr/include" -I"$folder/arm/usr/include/$python")
printf '%s\n' "$root"/csrc/*.cpp | xargs -P "$(nproc)" -I{} sh -c '
  source=$1 folder=$2 && shift 2 && aarch64-linux-gnu-g++ "$@" -c "$source" -o "$folder/$(basename "$source" .cpp).o"
' compile {} "$folder/objects" "${flags[@]}" "${includes[@]}"
rm -rf "$folder/kernels" && cp -r "$root/kernels" "$folder/kernels" && rm -f "$folder"/kernels/ffalora_kernels/*.so
aarch64-linux-gnu-g++ -shared -o "$folder/kernels/ffalora_kernels/_cpu.so" "$folder"/objects/*.o

rm -rf "$folder/tests" && cp -r "$root/tests/kernels" "$folder/tests"
cd "$folder/tests"
qemu-aarch64-static -L "$folder/arm" -E PYTHONPATH="$folder/kernels:$folder/tests:$folder/site" -E OMP_NUM_THREADS=2 \
  "$folder/arm/usr/bin/$python" -W ignore -m pytest --noconftest -p no:cacheprovider -c /dev/null -m "not slow and not gpu" \
  "${@:-${tests[@]}}"
