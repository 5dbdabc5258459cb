"""RTMW or RTMPose whole-body models through rtmlib and ONNX Runtime, behind a YOLOX person detector."""

from __future__ import annotations

from serve import MAX_PEOPLE, serve, version


class Detector:
    def __init__(self, options) -> None:
        import onnxruntime
        import rtmlib

        self.versions = {"rtmlib": version(rtmlib), "onnxruntime": onnxruntime.__version__}
        device = options["device"]
        if device == "auto":
            device = "cuda" if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu"
        model = rtmlib.Wholebody.MODE[options["mode"]]
        self.people = rtmlib.YOLOX(options["det"] or model["det"], model["det_input_size"], device=device)
        self.points = rtmlib.RTMPose(options["pose"] or model["pose"], model["pose_input_size"], device=device)
        # a model of one's own has its own size of input
        height, width = self.input_size(self.people) or model["det_input_size"]
        self.people.model_input_size = (height, width)
        height, width = self.input_size(self.points) or model["pose_input_size"][::-1]
        self.points.model_input_size = (width, height)

    @staticmethod
    def input_size(tool):
        """(height, width) of a model's input, None if it takes any."""
        size = tool.session.get_inputs()[0].shape[2:]
        return tuple(size) if all(isinstance(n, int) for n in size) else None

    def start(self) -> None:
        pass

    def detect(self, frame):
        import numpy as np

        boxes = self.people(frame)
        if len(boxes) == 0:  # rtmlib would take the whole image for a person
            return np.zeros((0, 133, 2)), np.zeros((0, 133))
        xy, scores = self.points(frame, bboxes=boxes[:MAX_PEOPLE])
        return xy, np.clip(scores, 0, 1)  # responses of the network, some above 1


if __name__ == "__main__":
    serve(Detector)
