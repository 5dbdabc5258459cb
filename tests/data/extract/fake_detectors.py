"""Stand-ins for OpenCV and the detectors, as modules that a worker imports instead of the real ones.

A fake video is a line of text: ``VIDEO <frames> <frames it claims> <width> <height> [event]``. In every frame there are
two people; keypoint k of person p of frame t is at (100 p + t + k / 1000, 50 + 13 k mod 60), with confidence
1 / (p + 1). The events are "nobody", "grow" (frames change their size), "crash" (the process dies), "raise",
"hang" (the detector, at frame 1) and "stall" (the decoder, at frame 1).
"""

CV2 = """
import time
import numpy as np
CAP_PROP_FRAME_COUNT, CAP_PROP_FPS, INTER_AREA = 7, 5, 3
class VideoCapture:
    def __init__(self, path):
        words = open(path, "rb").read().split()
        self.open = words[:1] == [b"VIDEO"]
        self.at = 0
        if self.open:
            self.frames, self.claimed, self.width, self.height = map(int, words[1:5])
            self.event = words[5].decode() if len(words) > 5 else ""
    def isOpened(self):
        return self.open
    def get(self, what):
        return {CAP_PROP_FRAME_COUNT: float(self.claimed), CAP_PROP_FPS: 25.0}[what]
    def read(self):
        if self.at == self.frames:
            return False, None
        while self.event == "stall" and self.at == 1:
            time.sleep(1)
        frame = np.zeros((self.height + (self.event == "grow") * self.at, self.width, 3), np.uint8)
        frame[0, 0] = self.at, ["", "nobody", "crash", "raise", "hang"].index(
            self.event if self.event not in ("grow", "stall") else ""), 0
        self.at += 1
        return True, frame
    def release(self):
        pass
def resize(image, size, interpolation):
    return np.zeros((size[1], size[0], 3), np.uint8)
"""
PEOPLE = """
import os
import time
import numpy as np
def people(frame, count):
    t, event = int(frame[0, 0, 0]), int(frame[0, 0, 1])
    print("this goes to stderr")
    if event == 2 and t == 1:
        os.kill(os.getpid(), 11)
    if event == 3:
        raise ValueError("a network\\\\nthat fails")
    while event == 4 and t == 1:
        time.sleep(1)
    if event == 1:
        return np.zeros((0, count, 2)), np.zeros((0, count))
    xy = np.zeros((2, count, 2))
    xy[:, :, 0] = 100 * np.arange(2)[:, None] + t + np.arange(count) / 1000
    xy[:, :, 1] = 50 + 13 * np.arange(count) % 60
    return xy, np.ones((2, count)) / np.array([[1], [2]])
"""
RTMLIB = """
import os, subprocess, sys, time, types
from fake_people import people
while os.environ.get("FAKE") == "hang":
    time.sleep(1)
if os.environ.get("FAKE") == "download":
    for _ in range(4):
        time.sleep(0.7)
        print("some more bytes", file=sys.stderr)
if os.environ.get("FAKE_CHILD"):
    child = subprocess.Popen(["sleep", "100"])
    open(os.environ["FAKE_CHILD"], "w").write(str(child.pid))
__version__ = "9.9"
class Wholebody:
    MODE = {"balanced": {"det": "http://det", "det_input_size": (640, 640),
                         "pose": "http://pose", "pose_input_size": (192, 256)}}
class Tool:
    def __init__(self, model, model_input_size, device="cpu"):
        if model.startswith("http") and os.environ.get("FAKE") == "offline":
            from urllib.error import URLError
            raise URLError("no route to host")
        if model.startswith("http") is False and not open(model).read():
            raise RuntimeError("no ONNX model")
        self.model_input_size = model_input_size
        shape = [1, 3, 384, 288] if model.endswith(".onnx") else [1, 3, "height", "width"]
        self.session = types.SimpleNamespace(get_inputs=lambda: [types.SimpleNamespace(shape=shape)])
class YOLOX(Tool):
    def __call__(self, frame):
        return people(frame, 1)[0]
class RTMPose(Tool):
    def __call__(self, frame, bboxes):
        assert self.model_input_size in ((192, 256), (288, 384)), self.model_input_size
        xy, confidence = people(frame, int(os.environ.get("FAKE_KEYPOINTS", 133)))
        return xy, 1.5 * confidence
"""
ONNXRUNTIME = '__version__ = "8.8"\ndef get_available_providers():\n    return ["CPUExecutionProvider"]\n'
MEDIAPIPE = """
import types
from fake_people import people
__version__ = "0.10.21"
class Holistic:
    def __init__(self, model_complexity):
        self.resets = 0
    def reset(self):
        self.resets += 1
    def process(self, frame):
        assert frame.flags.c_contiguous
        xy, _ = people(frame[:, :, ::-1], 543)
        def part(first, count):
            if len(xy) == 0 or (first == 33 and int(frame[0, 0, 2]) % 2):  # the left hand is lost in every other frame
                return None
            points = [types.SimpleNamespace(x=x / frame.shape[1], y=y / frame.shape[0], visibility=0.75)
                      for x, y in xy[0, first:first + count]]
            return types.SimpleNamespace(landmark=points)
        return types.SimpleNamespace(pose_landmarks=part(0, 33), left_hand_landmarks=part(33, 21),
                                     right_hand_landmarks=part(54, 21), face_landmarks=part(75, 468))
solutions = types.SimpleNamespace(holistic=types.SimpleNamespace(Holistic=Holistic))
"""
MMPOSE = """
from fake_people import people
class MMPoseInferencer:
    def __init__(self, pose2d, pose2d_weights, det_model, det_weights, det_cat_ids, device):
        given = pose2d, det_model, det_cat_ids, device
        assert given in (("wholebody", None, None, None), ("p.py", "d.py", [0], "cpu"))
    def __call__(self, frame, return_vis, show):
        yield {"predictions": [[{"keypoints": xy.tolist(), "keypoint_scores": confidence.tolist()}
                                for xy, confidence in zip(*people(frame, 133))]]}
"""


def install(folder, *names):
    """Put fake modules into a folder; a detector that is not named cannot be imported from it."""
    sources = {
        "cv2.py": CV2, "fake_people.py": PEOPLE.replace("\\\\n", "\\n"), "rtmlib.py": RTMLIB,
        "onnxruntime.py": ONNXRUNTIME, "mediapipe.py": MEDIAPIPE, "mmpose/apis.py": MMPOSE,
        "mmpose/__init__.py": '__version__ = "1.3.2"\n',
    }  # fmt: skip
    for name, source in sources.items():
        module = name.split("/")[0].removesuffix(".py")
        if names and module in ("cv2", "rtmlib", "mediapipe", "mmpose") and module not in names:
            source = f"raise ImportError('No module named {module}', name={module!r})\n"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def video(path, frames=3, claimed=None, size=(640, 480), event=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"VIDEO {frames} {frames if claimed is None else claimed} {size[0]} {size[1]} {event}")
    return path
