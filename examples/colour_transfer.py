"""The colours of one photograph in another: a map between two sets of pixels.

Two photographs that scikit-learn ships, a temple in China and a flower: 273 280 pixels each, points
in the cube of red, green and blue. A map is fitted to some thousands of pixels, and then every
pixel of the temple is carried by it. Pixels that the fit has not seen say how near the colours
come: beside the distance stands its floor, what two sets of the flower's own pixels show.

    python examples/colour_transfer.py --out demo
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_sample_image

import driftbridge as db
from driftbridge import map_report
from driftbridge.plot_elements import STYLE, new_figure

# Pixels of each picture that the map is fitted to, and as many that it is tested on.
PIXELS = 4000
CHANNELS = ("red", "green", "blue")


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Both photographs with channels in [0, 1]: `(427, 640, 3)`."""
    return tuple(load_sample_image(f"{name}.jpg") / np.float32(255) for name in ("china", "flower"))


def pixels(picture: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels for the fit, and others for the test."""
    flat = picture.reshape(-1, 3)
    chosen = np.random.default_rng(seed).permutation(len(flat))
    return flat[chosen[:PIXELS]], flat[chosen[PIXELS : 2 * PIXELS]]


def draw(source: np.ndarray, image: np.ndarray, target: np.ndarray, path: Path) -> Path:
    """The three pictures side by side."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = new_figure(2.55)
        names = ("source", "source in the target's colours", "target")
        shown = (source, np.clip(image, 0, 1), target)
        for axis, name, picture in zip(figure.subplots(1, 3), names, shown, strict=True):
            axis.imshow(picture)
            axis.set_title(name)
            axis.set_axis_off()
        figure.savefig(path, dpi=130)
    return path


def main(out: Path, method: str = "auto") -> db.TransportMap:
    """Fit the map, print what it is worth, and write the report and the picture to `out`."""
    source, target = pictures()
    x, x_test = pixels(source, 0)
    y, y_test = pixels(target, 1)
    fitted = db.fit_map(x, y, method)
    report = fitted.report(x_test, y_test)
    print(report)

    out.mkdir(parents=True, exist_ok=True)
    image = fitted(source.reshape(-1, 3)).reshape(source.shape)
    title = "Pixels of a temple in the colours of a flower"
    print(f"\nPicture: {draw(source, image, target, out / 'colours.png')}")
    print(f"Report: {map_report.write(report, out / 'colours.html', title)}")
    print(f"Map: {fitted.save(out / 'colours.npz')}")
    return fitted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the results")
    parser.add_argument("--method", default="auto", help="a method of driftbridge.fit_map")
    arguments = parser.parse_args()
    main(arguments.out, arguments.method)
