"""NesT-T at 224 pixels on the CPU, float32, batches of 16: ours and timm's on PyTorch, in turn.

    .venv/bin/python tests/benchmarks/model_speed.py

Each contender is a process of its own with all cores; they take turns, so that the neighbours of
this machine disturb both alike. The table shows medians, and the medians of the ratios round by
round. PyTorch and timm need an environment of their own, which is made once below
.venv-benchmarks: torch 2.13.0, best as a wheel without CUDA (pip's --find-links or index decides),
and timm 1.0.31. The official code needs a JAX of 2021; its quotient to timm is a constant here.
"""

import argparse
import statistics
import sys

import input_speed

# What the official JAX code did beside this timm in one run on another day, in images a second.
OFFICIAL = {"train step": 1.46 / 2.24, "forward": 6.1 / 6.5}
GOALS = {"train step": (1.2, 1.85), "forward": (1.23, 1.31)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    contenders = [
        input_speed.Contender("nest_dist", sys.executable, "", kind="model"),
        input_speed.Contender("timm", input_speed.environment("torch"), "", kind="model"),
    ]
    for each in contenders:  # until the memory that they keep has the places that they need
        each.round()
        each.round()
    rounds = [{each.name: each.round() for each in contenders} for _ in range(options.rounds)]
    for each in contenders:
        each.close()
    print(f"\n{'images a second, median of ' + str(len(rounds)):<32}{'ours':>8}{'timm':>8}", end="")
    print(f"{'ours/timm':>12}{'goal':>6}{'ours/official':>16}{'goal':>6}")
    for part in rounds[0]["timm"]:
        ours, timm = (
            statistics.median(r[name][part] for r in rounds) for name in ("nest_dist", "timm")
        )
        ratio = statistics.median(r["nest_dist"][part] / r["timm"][part] for r in rounds)
        beside_timm, beside_official = GOALS[part]
        print(f"{part:<32}{ours:>8.2f}{timm:>8.2f}{ratio:>12.2f}{beside_timm:>6}", end="")
        print(f"{ratio / OFFICIAL[part]:>16.2f}{beside_official:>6}")


if __name__ == "__main__":
    main()
