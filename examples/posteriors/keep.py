"""Write the posteriors that may be redistributed from a folder of data into the repository.

    python -m examples.posteriors.keep FOLDER

Of reference draws only moments and quantiles are kept.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from examples.posteriors.cases import CASES
from examples.posteriors.reference import REPOSITORY, Posterior, Reference, load

# kidiq is a sample of a survey of people; the licence of its data is not known.
LEFT_OUT = ("kidiq-kidscore_interaction",)


def content(name: str, posterior: Posterior) -> dict[str, Any]:
    """What the file of a posterior holds; NaN as null, which JSON knows."""
    data = {key: np.asarray(value).tolist() for key, value in posterior.data.items()}
    for key, value in data.items():
        if isinstance(value, list):
            data[key] = [None if number != number else number for number in value]
    return {"name": name, "data": data, "reference": rounded(posterior.reference)}


def rounded(reference: Reference) -> dict[str, Any]:
    """The reference to seven digits, far below its Monte Carlo errors."""
    return json.loads(
        json.dumps(asdict(reference)), parse_float=lambda text: float(f"{float(text):.7g}")
    )


def main(folder: Path) -> None:
    """Write one file for each."""
    for case in CASES:
        if case.name not in LEFT_OUT:
            posterior = load(case.name, folder)
            path = REPOSITORY / f"{case.name}.json"
            path.write_text(json.dumps(content(case.name, posterior)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
