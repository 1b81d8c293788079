"""insightface's recipe, written again in numpy from its description: one picture at a time, networks run by onnxruntime.

Pictures are H W 3, RGB, of values 0..255 as floats (insightface rounds to 8 bits in between; here nothing is rounded).
"""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from skimage import transform

Array = NDArray[np.float64]
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(network: onnxruntime.InferenceSession, inputs: Array) -> list[Array]:
    return [output.astype(np.float64) for output in network.run(None, {network.get_inputs()[0].name: inputs.astype(np.float32)})]


def resize(picture: Array, height: int, width: int) -> Array:
    """Bilinear, pixel centres at half integers, edges repeated: cv2.resize's default."""

    def weights(new: int, old: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
        position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.floor(position).astype(np.intp)
        return low, np.minimum(low + 1, old - 1), position - low

    top, bottom, down = weights(height, picture.shape[0])
    left, right, across = weights(width, picture.shape[1])
    rows = picture[top] * (1 - down)[:, None, None] + picture[bottom] * down[:, None, None]
    return rows[:, left] * (1 - across)[None, :, None] + rows[:, right] * across[None, :, None]


def detect(network: onnxruntime.InferenceSession, picture: Array) -> tuple[Array, Array]:
    """Return boxes with scores (K 5) and points (K 5 2), best first, after non-maximum suppression."""
    height, width = picture.shape[:2]
    if height / width > 1:
        new_height, new_width = 640, int(640 / (height / width))
    else:
        new_height, new_width = int(640 * (height / width)), 640
    scale = new_height / height
    canvas = np.zeros((640, 640, 3))
    canvas[:new_height, :new_width] = resize(picture, new_height, new_width)
    outputs = run(network, ((canvas - 127.5) / 128).transpose(2, 0, 1)[None])
    boxes, points = [], []
    for level, stride in enumerate((8, 16, 32)):
        score, distance, offset = (outputs[level + 3 * kind].reshape(-1, size) for kind, size in enumerate((1, 4, 10)))
        side = 640 // stride
        for anchor in np.flatnonzero(score[:, 0] >= 0.5):
            y, x = divmod(anchor // 2, side)
            centre = np.array([x, y]) * float(stride)
            low, high = centre - distance[anchor, :2] * stride, centre + distance[anchor, 2:] * stride
            boxes.append([*low / scale, *high / scale, score[anchor, 0]])
            points.append((centre + offset[anchor].reshape(5, 2) * stride) / scale)
    if not boxes:
        return np.zeros((0, 5)), np.zeros((0, 5, 2))
    order = np.argsort([-box[4] for box in boxes], kind="stable")
    found, found_points = np.array(boxes)[order], np.array(points)[order]
    keep = suppress(found)
    return found[keep], found_points[keep]


def suppress(boxes: Array) -> list[int]:
    """Greedy non-maximum suppression at 0.4; a box's last pixel counts. Boxes are sorted, best first."""
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    remaining, keep = list(range(len(boxes))), []
    while remaining:
        best = remaining.pop(0)
        keep.append(best)
        width = np.minimum(boxes[best, 2], boxes[remaining, 2]) - np.maximum(boxes[best, 0], boxes[remaining, 0]) + 1
        height = np.minimum(boxes[best, 3], boxes[remaining, 3]) - np.maximum(boxes[best, 1], boxes[remaining, 1]) + 1
        overlap = np.maximum(0, width) * np.maximum(0, height)
        ratio = overlap / (areas[best] + areas[remaining] - overlap)
        remaining = [index for index, value in zip(remaining, ratio, strict=True) if value <= 0.4]
    return keep


def largest_face(network: onnxruntime.InferenceSession, picture: Array) -> tuple[Array, Array] | None:
    boxes, points = detect(network, picture)
    if not len(boxes):
        return None
    best = int(np.argmax((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])))
    return boxes[best], points[best]


def align(picture: Array, points: Array) -> Array:
    """The 112x112 crop, black outside the picture."""
    similarity = transform.SimilarityTransform.from_estimate(points, TEMPLATE)
    return transform.warp(
        picture, similarity.inverse, output_shape=(112, 112), order=1, mode="constant", cval=0.0, preserve_range=True
    )


def embed(network: onnxruntime.InferenceSession, crop: Array, *, bgr: bool = False) -> Array:
    channels = crop[..., ::-1] if bgr else crop
    return run(network, ((channels - 127.5) / 127.5).transpose(2, 0, 1)[None])[0][0]


def score(folder: Path, generated: list[Array], truth: list[Array], penalty: float, *, bgr: bool = False) -> float:
    """The face score of one video: lists of pictures, one a frame."""
    detector, recogniser = session(folder / "scrfd_10g_bnkps.onnx"), session(folder / "glintr100.onnx")

    def embeddings(pictures: list[Array]) -> list[Array | None]:
        faces = [largest_face(detector, picture) for picture in pictures]
        return [
            None if face is None else embed(recogniser, align(picture, face[1]), bgr=bgr)
            for face, picture in zip(faces, pictures, strict=True)
        ]

    references = [reference for reference in embeddings(truth)[1:] if reference is not None]
    scores = []
    for embedding in embeddings(generated):
        if embedding is None:
            scores.append(penalty)
            continue
        cosines = [embedding @ other / np.linalg.norm(embedding) / np.linalg.norm(other) for other in references]
        scores.append(float(np.mean(cosines)))
    return float(np.mean(scores))
