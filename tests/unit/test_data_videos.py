"""Reading, fitting and writing videos."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from rewardfl_trainer.data import fit_frame, load_video, target_size
from rewardfl_trainer.video import Frame, VideoError, read_frames, to_uint8, write_video
from tests.unit.datasets import parameters


def write(
    path: Path, frames: list[Frame], *, codec: str = "libx264", pixels: str = "yuv420p", rotation: int = 0, audio: bool = False
) -> Path:
    """Write frames with any codec and rotation, and a tone beside them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=16)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        if rotation:
            stream.set_display_rotation(rotation)
        sound = container.add_stream("aac", rate=44100) if audio else None
        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 16)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
            tone.sample_rate = 44100
            container.mux(sound.encode(tone))
            container.mux(sound.encode(None))
    return path


def red_left(height: int = 48, width: int = 64) -> Frame:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2, 0] = 255
    return picture


def counted(count: int, height: int = 32, width: int = 32) -> list[Frame]:
    """Frames whose brightness is 10 times their number."""
    return [np.full((height, width, 3), 10 * number, np.uint8) for number in range(count)]


def test_only_the_first_frames_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "long.mp4", counted(20))

    read = list(read_frames(path, 5))

    assert len(read) == 5
    np.testing.assert_allclose([frame.mean() for frame in read], [0, 10, 20, 30, 40], atol=3)


@pytest.mark.parametrize("audio", [False, True])
def test_audio_tracks_are_ignored(tmp_path: Path, audio: bool) -> None:
    path = write(tmp_path / "a.mp4", counted(5), audio=audio)
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == int(audio)

    assert len(list(read_frames(path, 5))) == 5


def test_a_file_with_sound_alone_has_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        tone.sample_rate = 44100
        container.mux(stream.encode(tone))
        container.mux(stream.encode(None))

    with pytest.raises(VideoError, match="has no video stream"):
        list(read_frames(path, 1))


@pytest.mark.parametrize(
    ("rotation", "edge"), [(0, np.s_[:, :16]), (90, np.s_[-16:, :]), (-90, np.s_[:16, :]), (180, np.s_[:, -16:])]
)
def test_rotation_metadata_is_applied(tmp_path: Path, rotation: int, edge: tuple[slice, slice]) -> None:
    path = write(tmp_path / "turned.mp4", [red_left()] * 5, rotation=rotation)

    frame = next(iter(read_frames(path, 5)))

    assert frame.shape == ((64, 48, 3) if rotation % 180 else (48, 64, 3))
    assert frame[edge][..., 0].mean() > 200
    assert frame[..., 0].mean() == pytest.approx(127, abs=12)


def test_rotation_agrees_with_the_matrix_that_phones_write(tmp_path: Path) -> None:
    """ISO 14496-12's track matrix (x, y) -> (-y, x): a quarter turn clockwise, so what was left comes to the top."""
    data = write(tmp_path / "plain.mp4", [red_left()] * 5).read_bytes()
    identity = np.array([1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    clockwise = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30], ">i4").tobytes()
    start = data.index(identity, data.index(b"tkhd"))
    (tmp_path / "phone.mp4").write_bytes(data[:start] + clockwise + data[start + len(identity) :])

    frame = next(iter(read_frames(tmp_path / "phone.mp4", 5)))

    assert frame.shape == (64, 48, 3)
    assert frame[:28, :, 0].mean() > 240
    assert frame[36:, :, 0].mean() < 15


def test_an_odd_rotation_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "askew.mp4", [red_left()] * 5, rotation=30)

    with pytest.raises(VideoError, match=r"rotated by (29|30) degrees; only quarter turns"):
        list(read_frames(path, 5))


def noise_video(path: Path) -> bytes:
    return write(path, list(np.random.default_rng(0).integers(0, 255, (9, 48, 64, 3), np.uint8))).read_bytes()


def test_a_video_overwritten_from_the_middle_on_is_refused(tmp_path: Path) -> None:
    data = noise_video(tmp_path / "noise.mp4")
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    middle = (start + end) // 2
    (tmp_path / "damaged.mp4").write_bytes(data[:middle] + bytes(end - middle) + data[end:])

    with pytest.raises(VideoError, match=r"is damaged|cannot be decoded after [1-9]"):
        list(read_frames(tmp_path / "damaged.mp4", 9))


def test_damage_that_the_decoder_conceals_is_refused(tmp_path: Path) -> None:
    """H.264 has no checksum, so damage may pass for a picture; wherever the decoder notices it, the video is refused."""
    data = noise_video(tmp_path / "noise.mp4")
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 64
    said = []
    for position in np.linspace(start, end, 40).astype(int):
        (tmp_path / "damaged.mp4").write_bytes(data[:position] + bytes(60) + data[position + 60 :])
        try:
            assert len(list(read_frames(tmp_path / "damaged.mp4", 9))) == 9
        except VideoError as error:
            said.append(str(error))

    assert any("is damaged" in message for message in said)


@pytest.mark.parametrize(
    ("codec", "pixels", "suffix"),
    [("libvpx-vp9", "yuv420p", ".webm"), ("libx265", "yuv420p10le", ".mkv"), ("mpeg4", "yuv420p", ".avi")],
)
def test_other_codecs_and_containers_are_read(tmp_path: Path, codec: str, pixels: str, suffix: str) -> None:
    path = write(tmp_path / f"video{suffix}", counted(5, 64, 64), codec=codec, pixels=pixels)

    assert [frame.shape for frame in read_frames(path, 5)] == [(64, 64, 3)] * 5


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 480), (480, 480)),
        ((1080, 1920), (352, 640)),  # 230,400 pixels at most, multiples of 16
        ((1920, 1080), (640, 352)),
        ((100, 100), (96, 96)),  # never enlarged
        ((2, 4000), (16, 4000)),
    ],
)
def test_videos_are_scaled_under_max_pixels_to_multiples_of_16(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size(*size, parameters(max_pixels=480 * 480)) == expected


def test_fixed_height_and_width_are_used_instead(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [red_left(96, 64)] * 5)

    video = load_video(path, parameters(height=32, width=48))

    assert video.shape == (3, 5, 32, 48)


def test_a_frame_is_scaled_to_cover_and_cut_evenly() -> None:
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 25:75] = 255  # the middle is white

    frame = fit_frame(picture, 32, 32)

    assert frame.shape == (3, 32, 32)
    torch.testing.assert_close(frame, torch.ones(3, 32, 32))


def test_a_frame_of_the_right_size_is_left_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)

    frame = fit_frame(picture, 32, 48)

    np.testing.assert_array_equal(to_uint8(frame[:, None])[0], picture)


def test_values_are_rounded_and_clipped_to_8_bits() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0, torch.nan]).reshape(1, 1, 1, 6).expand(3, 1, 1, 6)

    assert to_uint8(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 128]


def test_written_videos_play_in_browsers_and_read_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(1, 3, 2, 3, 4, generator=generator) * 2 - 1
    video = torch.nn.functional.interpolate(colours, (9, 48, 64), mode="trilinear")[0]
    path = tmp_path / "new folder" / "ein Bild é.mp4"

    write_video(path, video)

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.frames) == ("h264", "yuv420p", 9)
        assert stream.average_rate == 16
    assert path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")  # starts before it has loaded
    read = np.stack(list(read_frames(path, 9)))
    assert np.abs(read.astype(int) - to_uint8(video)).mean() < 4
    assert [file.name for file in path.parent.iterdir()] == [path.name]


WRITE = """
import sys, pathlib, torch
from rewardfl_trainer.video import write_video
colours = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
write_video(pathlib.Path(sys.argv[1]), torch.nn.functional.interpolate(colours, (33, 64, 64), mode="trilinear")[0])
"""


def test_the_same_frames_give_the_same_file_whatever_lies_in_fresh_memory(tmp_path: Path) -> None:
    files = [tmp_path / f"{filling}.mp4" for filling in (1, 254)]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE, str(file)], env={**os.environ, "MALLOC_PERTURB_": file.stem})
        for file in files
    ]
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0]
    first, second = (file.read_bytes() for file in files)
    assert first == second
