"""Runs inside the environment of pacbb: reads points as JSON, writes its values and its times."""

import json
import sys
import time

sys.path.insert(0, sys.argv[1])  # the repository's files, ahead of the incomplete wheel

from core.bound.KLBound import KLBound
from core.bound.McAllesterBound import McAllesterBound
from core.utils.kl import inv_kl


def main() -> None:
    points = json.load(sys.stdin)
    values, start = [], time.process_time()
    for risk, nats in points["inverse"]:
        values.append(inv_kl(risk, nats))
    seconds = time.process_time() - start
    bounds = []
    for risk, kl, n, draws, delta, delta_draws in points["bounds"]:
        numbers = [
            bound(delta, delta_draws).calculate(risk, kl, n, draws)
            for bound in (KLBound, McAllesterBound)
        ]
        bounds.append([float(each[0]) for each in numbers])
    json.dump({"inverse": values, "seconds": seconds, "bounds": bounds}, sys.stdout)


if __name__ == "__main__":
    main()
