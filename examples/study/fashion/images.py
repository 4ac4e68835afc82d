"""The images: Fashion-MNIST as it was published, split once for each seed."""

import gzip
import zlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

PACKAGE = "dataset-fashion-mnist"  # of Debian
FOLDER = Path("/usr/share/datasets/fashion-mnist")
SIDE, CLASSES = 28, 10

CHECKSUMS = {  # of the files without their compression
    "train-images-idx3-ubyte": 0xB4F29F28,
    "train-labels-idx1-ubyte": 0x741A4657,
    "t10k-images-idx3-ubyte": 0x678FE0B1,
    "t10k-labels-idx1-ubyte": 0x80142C1F,
}
IMAGE_HEADER, LABEL_HEADER = 16, 8  # bytes


class Images(NamedTuple):
    """Some images.

    Attributes:
      pixels: between 0 and 1, ``[N, 784]``, float32.
      labels: ``[N]``.
    """

    pixels: np.ndarray
    labels: np.ndarray

    def take(self, indices: np.ndarray) -> "Images":
        """Takes some of them."""
        return Images(self.pixels[indices], self.labels[indices])


class Data(NamedTuple):
    """The images to train and validate with, and those to test with."""

    train: Images
    test: Images


@cache
def published(folder: Path) -> Data:
    """Reads the four files of Fashion-MNIST, compressed or not.

    Raises:
      ValueError: a file is missing, is broken, or is not what was published.
    """
    if not folder.is_dir():
        raise ValueError(
            f"Fashion-MNIST was not found: there is no folder {folder}. Install Debian's "
            f"package with\n  apt-get install {PACKAGE}\nor name a folder that holds its "
            "four files with --data-dir"
        )
    contents = [_read(folder, *named) for named in CHECKSUMS.items()]
    return Data(_images(*contents[:2]), _images(*contents[2:]))


@cache
def made() -> Data:
    """Makes small sets of images that need no file: noisy patterns, one for each class."""
    random = np.random.default_rng(0)
    coarse = random.random((CLASSES, SIDE // 4, SIDE // 4))
    patterns = coarse.repeat(4, axis=1).repeat(4, axis=2).reshape(CLASSES, SIDE * SIDE)

    def some(count: int) -> Images:
        labels = random.permutation(np.arange(count) % CLASSES)
        noise = random.random((count, SIDE * SIDE))
        return Images(((patterns[labels] + noise) / 2).astype(np.float32), labels)

    return Data(some(400), some(100))


@cache
def outliers() -> np.ndarray:
    """Enlarges scikit-learn's digits to the size of the images, ``[1797, 784]``."""
    digits = load_digits().images / 16
    larger = zoom(digits, (1, 3, 3), order=1)  # 24 by 24, and a margin around them
    padded = np.pad(larger, ((0, 0), (2, 2), (2, 2)))
    return padded.reshape(len(digits), SIDE * SIDE).astype(np.float32)


def split(images: Images, size: int, validation: int, seed: int) -> tuple[Images, Images]:
    """Draws images to fit parameters with, and others to validate with, of a seed.

    Smaller sets of a seed are parts of larger ones; its validation images are the same.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(images.labels))
    if size + validation > len(order):
        raise ValueError(
            f"{size} images to train and {validation} to validate with are more than the "
            f"{len(order)} that there are"
        )
    return images.take(order[:size]), images.take(order[-validation:])


def _read(folder: Path, name: str, checksum: int) -> bytes:
    plain, packed = folder / name, folder / f"{name}.gz"
    path = plain if plain.exists() else packed
    if not path.exists():
        raise ValueError(
            f"{packed} is missing: Fashion-MNIST is the files {', '.join(CHECKSUMS)}, "
            f"with or without .gz. Install them with\n  apt-get install {PACKAGE}\n"
            "or name a folder that holds them with --data-dir"
        )
    again = f"Copy or download it again, or apt-get install --reinstall {PACKAGE}"
    try:
        content = path.read_bytes()
        if path == packed:
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} could not be read whole: {error}. {again}") from error
    if zlib.crc32(content) != checksum:
        raise ValueError(
            f"{path} is not the published file of Fashion-MNIST, or not all of it: its "
            f"{len(content)} bytes have the CRC-32 {zlib.crc32(content):08x}, not "
            f"{checksum:08x}. {again}"
        )
    return content


def _images(pixels: bytes, labels: bytes) -> Images:
    values = np.frombuffer(pixels, np.uint8, offset=IMAGE_HEADER)
    return Images(
        values.reshape(-1, SIDE * SIDE) / np.float32(255),
        np.frombuffer(labels, np.uint8, offset=LABEL_HEADER).astype(np.int32),
    )
