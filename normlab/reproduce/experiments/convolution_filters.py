"""Two photographs through two hand-made filters: gray, by a sum over the channels, and horizontal edges."""

from __future__ import annotations

from importlib import resources

import numpy as np

from normlab.reproduce import verdicts
from normlab.reproduce.experiment import Result, Setting
from normlab.reproduce.galleries import as_png
from normlab.scratch.fast_layers import conv_forward_fast
from normlab.scratch.layers import conv_forward_naive

PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # see pictures/SOURCES.md
GRAY = (0.3, 0.6, 0.1)  # weights of red, green and blue
EDGE = ((1, 2, 1), (0, 0, 0), (-1, -2, -1))  # Sobel, on the blue channel


def run(setting: Setting) -> Result:
    size = setting.pick(48, 200)
    x = np.stack([_photograph(name, size) for name in PHOTOGRAPHS])
    w = np.zeros((2, 3, 3, 3))
    w[0, :, 1, 1] = GRAY
    w[1, 2] = EDGE
    b = np.array([0.0, 128.0])
    out, _ = conv_forward_fast(x, w, b, {"stride": 1, "pad": 1})
    naive, _ = conv_forward_naive(x, w, b, {"stride": 1, "pad": 1})
    off = float(abs(out - naive).max())
    gray = float(abs(out[:, 0] - np.tensordot(GRAY, x, (0, 1))).max())
    rows = [np.concatenate([x[i], _gray(out[i, 0]), _gray(out[i, 1])], axis=2) for i in range(len(x))]
    findings = [
        verdicts.exact(
            "convolution with two filters gives the photographs' gray values and their edges",
            "pictures: original, gray, edges",
            f"gray off by at most {gray:.1g} of 255 from the weighted sum of the channels; see the picture",
            gray < 1e-9,
            "holds if gray is the weighted sum of the channels to 1e-9; the pictures are for the eye",
        ),
        verdicts.exact(
            "the compiled convolution gives the same pictures as the nested loops",
            verdicts.OURS,
            f"off by at most {off:.1g} of 255",
            off < 1e-9,
            "holds if no pixel differs by more than 1e-9",
        ),
    ]
    return Result(
        findings,
        {
            "images": f"{' and '.join(PHOTOGRAPHS)}, {size} x {size}",
            "filters": f"gray: {GRAY} at the centre; edges: {EDGE} on blue, plus 128",
        },
        pictures={"filters": as_png(np.concatenate(rows, axis=1))},
        captions={"filters": "Original, gray and edges, each filter a convolution of 3 x 3 over the three channels."},
        notes=["The report showed a puppy and a kitten; these are two photographs that come with normlab (CC BY 2.0)."],
    )


def _photograph(name: str, size: int) -> np.ndarray:
    """A photograph that comes with the package, as float64 (3, size, size) from 0 to 255."""
    from PIL import Image

    with resources.files("normlab.reproduce").joinpath("pictures", name).open("rb") as file:
        return np.asarray(Image.open(file).resize((size, size)), np.float64).transpose(2, 0, 1)


def _gray(image: np.ndarray) -> np.ndarray:
    return np.broadcast_to(image, (3, *image.shape))
