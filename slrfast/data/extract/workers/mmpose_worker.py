"""MMPose 1.x through its own inferencer."""

from __future__ import annotations

from serve import serve


class Detector:
    def __init__(self, options) -> None:
        import mmpose
        from mmpose.apis import MMPoseInferencer

        self.versions = {"mmpose": mmpose.__version__}
        self.inferencer = MMPoseInferencer(
            pose2d=options["pose"] or "wholebody",
            pose2d_weights=options["pose_weights"],
            det_model=options["det"],
            det_weights=options["det_weights"],
            det_cat_ids=[0] if options["det"] else None,
            device=None if options["device"] == "auto" else options["device"],
        )

    def start(self) -> None:
        pass

    def detect(self, frame):
        import numpy as np

        found = next(self.inferencer(frame, return_vis=False, show=False))["predictions"][0]
        xy = [person["keypoints"] for person in found]
        scores = [person["keypoint_scores"] for person in found]
        return (np.asarray(xy), np.clip(scores, 0, 1)) if found else (np.zeros((0, 133, 2)), np.zeros((0, 133)))


if __name__ == "__main__":
    serve(Detector)
