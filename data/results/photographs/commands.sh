# From the project's folder. $1: a folder for packages, pictures and results; $2: a folder with CIFAR-10.
set -e
work=$1
mkdir -p "$work/unpacked"
(cd "$work" && apt-get download tuxpaint-stamps-default oxygen-icon-theme)
for package in "$work"/*.deb; do dpkg -x "$package" "$work/unpacked"; done
python -m benchmarks photograph-folders stamps "$work/unpacked" "$work/stamps"
python -m benchmarks photograph-folders icons "$work/unpacked" "$work/icons"
python -m benchmarks photograph-folders cifar "$2" "$work/cifar"

tail="--profile exponential --max-count 100 --ratio 50 --validation 20"
scratch="cross-entropy, class-balanced sampling, LDAM + DRW, balanced softmax, tau-normalization, cRT, logit adjustment"
for name in stamps icons cifar; do
    own=$([ $name = cifar ] && echo "$tail" || true)
    # every method as a head on features that stay
    python -m course_utils experiments run "$work/$name" --features efficientnet-lite0 --seeds 5 $own \
        --out "$work/results/$name"
    # the same pictures, networks that learn from scratch, as many epochs
    python -m course_utils experiments run "$work/$name" --features none --seeds 5 --epochs 60 $own \
        --methods "$scratch" --out "$work/results/$name-scratch"
    for folder in "$work/results/$name" "$work/results/$name-scratch"; do
        python -m course_utils experiments report --out "$folder"
    done
done
# the whole network learns too, from the head of balanced softmax on
for name in stamps icons; do
    python -m benchmarks fine-tuning "$work/$name" --size 128 --json "$work/results/$name-tuned.json"
done
python -m benchmarks fine-tuning "$work/cifar" --size 128 --json "$work/results/cifar-tuned.json" \
    --study '{"profile": "exponential", "max_count": 100, "ratio": 50, "validation": 20}'
