"""What is arranged differently, in words: for each cause and kind a sentence, and the line that would produce it."""

from __future__ import annotations

NAMES = ("orientation", "memory_layout", "frame_sequence", "input_type")
"""The causes that only an arrangement has; a channel that comes twice is a ``channel_order``."""
_TURNED = "the deployed side's pictures are "
_FRAMES = " (training's frames in its order: {order})"
_QUEUE = "frame = queue.get()  # "
TEXTS = {
    "orientation/left-right": (
        _TURNED + "mirrored, left and right exchanged",
        "frame[:, ::-1]  # cv2.flip(frame, 1), once too often or too seldom",
    ),
    "orientation/up-down": (
        _TURNED + "mirrored, top and bottom exchanged",
        "frame[::-1]  # cv2.flip(frame, 0), or rows that are stored from the bottom, as in a BMP or an OpenGL buffer",
    ),
    "orientation/half turn": (
        _TURNED + "turned by half a turn",
        "cv2.rotate(frame, cv2.ROTATE_180)  # a camera that hangs upside down, mended on one side only",
    ),
    "orientation/quarter turn right": (
        _TURNED + "turned by a quarter turn clockwise",
        "cv2.rotate(frame, cv2.ROTATE_90_CLOCKWISE)  # the orientation tag, obeyed on one side only",
    ),
    "orientation/quarter turn left": (
        _TURNED + "turned by a quarter turn counterclockwise",
        "cv2.rotate(frame, cv2.ROTATE_90_COUNTERCLOCKWISE)  # the orientation tag, obeyed on one side only",
    ),
    "orientation/transpose": (
        _TURNED + "transposed, rows and columns exchanged",
        "frame.transpose(1, 0, 2)  # width x height where height x width is meant",
    ),
    "orientation/transpose and half turn": (
        _TURNED + "mirrored at the diagonal from bottom left to top right",
        "frame[::-1, ::-1].transpose(1, 0, 2)  # width x height where height x width is meant, and a half turn",
    ),
    "memory_layout/order": (
        "the deployed side writes pictures to memory in the order {written} and reads them in the order {read}",
        "memory.reshape(...)  # where a transpose is needed: a reshape moves no value",
    ),
    "memory_layout/channels last": (
        "the deployed side hands over pictures as height x width x channels, training's have channels first",
        "frame.transpose(2, 0, 1)  # missing on the deployed side",
    ),
    "memory_layout/exchanged": (
        "the deployed side reads the memory of a picture with height and width exchanged, as its shape says",
        "memory.reshape(channels, width, height)  # where height comes first; a reshape moves no value",
    ),
    "memory_layout/padded rows": (
        "each row of the deployed side's {layout} memory ends in {padding:.0f} values that are read as pixels",
        "memory.reshape(height, stride)[:, :width]  # missing on the deployed side: the stride is wider than a row",
    ),
    "memory_layout/skipped values": (
        "the deployed side skips {padding:.0f} values after each row of {layout} memory, which has no padding",
        "memory.reshape(height, stride)[:, :width]  # of memory whose rows have no padding",
    ),
    "frame_sequence/reversed": (
        "the deployed side's frames are in reverse order" + _FRAMES,
        "sorted(frames)  # by time, on both sides",
    ),
    "frame_sequence/rotated": (
        "the deployed side's frames are {by:.0f} late, and begin with training's last" + _FRAMES,
        _QUEUE + "a ring buffer that is read one place away from where it is written",
    ),
    "frame_sequence/rotated back": (
        "the deployed side's frames are {by:.0f} early, and end with training's first" + _FRAMES,
        _QUEUE + "a ring buffer that is read one place away from where it is written",
    ),
    "frame_sequence/late": (
        "the deployed side's frames are {by:.0f} late" + _FRAMES,
        _QUEUE + "a buffer that holds the frame before, or outputs and inputs that are dumped at different times",
    ),
    "frame_sequence/early": (
        "the deployed side's frames are {by:.0f} early" + _FRAMES,
        _QUEUE + "the first frames are dropped on the deployed side",
    ),
    "frame_sequence/doubled": (
        "the deployed side shows each frame twice" + _FRAMES,
        _QUEUE + "read twice as often as the camera writes",
    ),
    "frame_sequence/held": (
        "the deployed side repeats the frame before instead of frame {frames}" + _FRAMES,
        _QUEUE + "the new frame came too late",
    ),
    "frame_sequence/exchanged": (
        "the deployed side's frames {frames} are exchanged" + _FRAMES,
        "sorted(frames)  # by time, on both sides",
    ),
    "frame_sequence/other": (
        "the deployed side's frames are in another order" + _FRAMES,
        "sorted(frames)  # by time or name, in the same way on both sides",
    ),
    "input_type/bytes": (
        "the deployed side feeds bytes from 0 to 255, training feeds normalised numbers",
        "pixels = (frame / 255 - mean) / std  # missing on the deployed side, or inside of its engine",
    ),
    "input_type/minus 128": (
        "the deployed side feeds signed bytes, training's levels minus 128",
        "frame.astype(np.int16) - 128  # as int8: the engine's zero point must be -128",
    ),
    "input_type/quantised": (
        "the deployed side feeds integers of 8 bits, quantised with scale {scale:.4g} and zero point {zero_point:.0f}",
        "np.clip(np.rint(x / {scale:.4g}) + {zero_point:.0f}, -128, 127)  # compare with the engine's input",
    ),
    "channel_order/repeated": (
        "the deployed side feeds channels as {order} where training has RGB: one comes twice",
        "np.stack([red, green, blue])  # one plane is taken twice",
    ),
    "channel_order/missing": (
        "the deployed side feeds channels as {order} where training has RGB: 0 is constant",
        "np.stack([red, green, blue])  # one plane is never written",
    ),
}
"""Cause and kind -> the sentence and the line, with places for the parameters."""
