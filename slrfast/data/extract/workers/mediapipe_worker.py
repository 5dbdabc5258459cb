"""MediaPipe Holistic: 33 landmarks of the body, 21 of each hand, 468 of the face, one person; nothing to download."""

from __future__ import annotations

from serve import serve


class Detector:
    def __init__(self, options) -> None:
        import mediapipe

        if not hasattr(mediapipe, "solutions"):  # later versions have another interface and no models in the wheel
            raise ImportError("mediapipe.solutions", name="mediapipe.solutions")
        self.versions = {"mediapipe": mediapipe.__version__}
        self.holistic = mediapipe.solutions.holistic.Holistic(model_complexity=1)

    def start(self) -> None:
        self.holistic.reset()  # or it would go on tracking the person of the video before

    def detect(self, frame):
        import numpy as np

        found = self.holistic.process(np.ascontiguousarray(frame[:, :, ::-1]))
        parts = (
            (found.pose_landmarks, 33), (found.left_hand_landmarks, 21),
            (found.right_hand_landmarks, 21), (found.face_landmarks, 468),
        )  # fmt: skip
        if not any(part for part, _ in parts):
            return np.zeros((0, 543, 2)), np.zeros((0, 543))
        points = np.zeros((543, 3))
        start = 0
        for part, count in parts:
            if part:  # only the body has a visibility; a hand or face is there or not
                points[start : start + count] = [
                    (p.x, p.y, p.visibility if count == 33 else 1.0) for p in part.landmark[:count]
                ]
            start += count
        height, width = frame.shape[:2]
        return points[None, :, :2] * (width, height), points[None, :, 2]


if __name__ == "__main__":
    serve(Detector)
