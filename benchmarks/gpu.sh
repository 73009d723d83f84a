#!/usr/bin/env bash
# Every GPU figure in one command, in ten minutes at most:  benchmarks/gpu.sh OUTDIR
#
# Needs torch, triton and the light dependencies; with transformers its ViTMAE is measured too.  Figures need a CUDA GPU and
# green GPU tests.  What was measured when the time is over is kept.
#   AUXMAE_GPU_SH_DEVICE=cpu   a dry run of every stage at tiny size on a CPU; its figures say nothing
#   AUXMAE_GPU_SH_TUNE=1       measure the kernels' tiles, of the same time, instead of taking the table's; OUTDIR/tuned keeps them
#   AUXMAE_GPU_SH_SECONDS=600  the time in all
#   PYTHON=python3             the interpreter
set -uo pipefail

if [ $# -ne 1 ]; then
    echo "error: usage: benchmarks/gpu.sh OUTDIR" >&2
    exit 2
fi
[ ! -e "$1/run" ] || { echo "error: $1 holds what an earlier call measured; name another folder" >&2; exit 1; }
mkdir -p "$1" 2> /dev/null && [ -w "$1" ] || { echo "error: $1: cannot be written" >&2; exit 1; }
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
device=${AUXMAE_GPU_SH_DEVICE:-cuda}
total=${AUXMAE_GPU_SH_SECONDS:-600}
[[ $total =~ ^[1-9][0-9]*$ ]] || { echo "error: AUXMAE_GPU_SH_SECONDS=$total: no number of seconds" >&2; exit 2; }
tune=${AUXMAE_GPU_SH_TUNE:-0}
export PYTHONPATH=".:kernels${PYTHONPATH:+:$PYTHONPATH}"
# No setting of the caller gets into the figures; AuxMAE would also refuse the variables of this script.
unset "${!AUXMAE_@}"
stamp=$(date -u +%Y-%m-%d)
began=$SECONDS
failed=()

case $device in
    cuda) label=gpu ;;
    cpu) label=dry-run ;;
    *) echo "error: AUXMAE_GPU_SH_DEVICE is cuda or cpu, not $device" >&2; exit 2 ;;
esac
"$python" -c 'import torch' 2> /dev/null || { echo "error: $python has no PyTorch; PYTHON names another interpreter" >&2; exit 1; }
if [ "$device" = cuda ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
    echo "error: PyTorch sees no CUDA GPU; AUXMAE_GPU_SH_DEVICE=cpu makes a dry run without one" >&2
    exit 1
fi

# stage NAME SECONDS COMMAND...: runs within what is left of the time; its output goes to NAME.log.
stage() {
    local name=$1 limit=$2 left code
    shift 2
    left=$((total - (SECONDS - began)))
    [ "$limit" -lt "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        echo "== $name: no time left"
        failed+=("$name")
        return 1
    fi
    echo "== $name (at most $limit s)"
    # An interrupt lets Python end in order; what it has recorded so far stays.
    timeout --signal=INT --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
    code=$?
    if [ $code -eq 0 ]; then
        return 0
    elif [ $code -eq 124 ] || [ $code -eq 137 ]; then
        echo "   its time was over; what it had measured by then is kept"
    else
        echo "   failed (exit code $code): $(tail -n 1 "$out/$name.log")"
    fi
    failed+=("$name")
    return 1
}

# share PERCENT: seconds, so many in a hundred of what is left, but no fewer than most of what a suite needs to get anywhere.
share() {
    local part=$(((total - (SECONDS - began)) * $1 / 100))
    echo $((part > 55 ? part : 55))
}

# One visit, for which alone there is time: spreads are then those of rounds on the same tensors.
benchmark() {
    local suite=$1 limit=$2
    shift 2
    stage "$suite" "$limit" "$python" -m auxmae benchmark --suite "$suite" --device "$device" --visits 1 \
        --output "$out/$stamp-$label-$suite.json" "$@"
}

# GPU tests first, without the filters of warnings, which name packages that need not be here: no figure of a kernel that is wrong.
# Most of their time goes to compilers, so where pytest-xdist is installed as many run at once as there are processors, but no more
# than 16, since each holds memory of the GPU.
if [ "$device" = cuda ]; then
    mapfile -t tests < <(grep -rlE 'mark\.gpu\b' tests --include='*.py')
    marked=(-m gpu)
    export TORCHINDUCTOR_COMPILE_THREADS=1
    size=() repeats=10 minutes=1
    [ "$total" -ge 500 ] || minutes=0.2
else
    tests=(tests/benchmark/test_kernel_suite.py)
    marked=(-m "not slow and not gpu")
    size=(--quick) repeats=2 minutes=0.05
fi
run_tests() {
    stage "$1" "$limit" "$python" -m pytest "${marked[@]}" -rs -p no:cacheprovider -o filterwarnings= "${@:2}" "${tests[@]}" || {
        echo "error: the tests are red, or not through in time ($out/$1.log): no figure is measured" >&2
        exit 1
    }
}
if "$python" -c 'import xdist' 2> /dev/null; then
    limit=150
    run_tests tests -n auto --maxprocesses 16 --dist loadgroup -k "not more_than_two_to_the_31"
    # These want most of the memory, which the others' processes would not leave them.
    [ "$device" = cpu ] || run_tests large-tests -k more_than_two_to_the_31
else
    # One after another they take minutes: pytest-xdist leaves more for the figures.
    limit=360
    run_tests tests
fi
unset TORCHINDUCTOR_COMPILE_THREADS

if [ "$tune" = 1 ]; then
    # Tiles are measured where a shape is first met; what was found comes back with the figures.
    export AUXMAE_AUTOTUNE=1 XDG_CACHE_HOME="$out/tuned"
fi

# Kernels first: the models then run those that won here.  What comes later gets what is left of the time.
benchmark kernels "$(share 30)" --repeats 5 ${size[@]+"${size[@]}"}
[ -f "$out/$stamp-$label-kernels.json" ] &&
    stage table 20 "$python" benchmarks/measured.py "$out/$stamp-$label-kernels.json" --output "$out/measured.json" &&
    export AUXMAE_KERNEL_TABLE="$out/measured.json"
benchmark model "$(share 50)" --repeats "$repeats" --recompute ${size[@]+"${size[@]}"}
benchmark data 45 --repeats 3
stage train 100 "$python" -m auxmae train --device "$device" --output "$out/run" --set "train.max_minutes=$minutes" \
    $([ "$device" = cuda ] && echo --preset reference) --set train.epochs=1000000
if [ "$device" = cuda ]; then
    for suite in model kernels; do
        stage "$suite-compiled" 150 "$python" -m auxmae benchmark --suite "$suite" --device "$device" --visits 1 --repeats 5 \
            --compile --case reference --output "$out/$stamp-$label-$suite-compiled.json"
    done
fi
benchmark scaling 60 --repeats "$repeats" ${size[@]+"${size[@]}"}

echo
echo "$((SECONDS - began)) s in all; results in $out"
if [ ${#failed[@]} -gt 0 ]; then
    echo "error: not complete: ${failed[*]} (see the .log files)" >&2
    exit 1
fi
